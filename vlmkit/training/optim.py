"""AdamW over a task's parameter groups, learning-rate schedules as pure functions of the step, gradient norms."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from vlmkit.config import OptimConfig
from vlmkit.contracts import Task
from vlmkit.errors import UserError


class Optimizer:
    """AdamW whose groups follow one schedule, each from its own peak rate; a group's ``limits`` bound its values.

    Its state exists from the start (zeros, zero steps), so what a checkpoint holds does not depend on which parameters
    have had gradients yet.
    """

    def __init__(self, task: Task, optim: OptimConfig, total_steps: int) -> None:
        groups = [group for group in task.parameter_groups(optim) if group["params"]]
        if not groups:
            raise UserError("Nothing is trainable: every parameter of the model is frozen; unfreeze a part of it.")
        self.config = optim
        self.total_steps = total_steps
        self.peaks = [group["lr"] for group in groups]
        # The fused kernel updates all parameters of a group in one pass, on CPU as on CUDA.
        self.adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self._create_state()

    def _create_state(self) -> None:
        """A step of rate zero over zero gradients moves nothing and creates the moments; its step counts are undone."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        for group in self.adamw.param_groups:
            group["lr"] = 0.0
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        for state in self.adamw.state.values():
            state["step"].zero_()

    def step(self, step: int) -> float:
        """Make update number ``step`` (from 0), drop the gradients, return the rate as a fraction of its peak."""
        factor = lr_factor(step, self.total_steps, self.config)
        for group, peak in zip(self.adamw.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self._keep_limits()
        return factor

    @torch.no_grad()
    def _keep_limits(self) -> None:
        for group in self.adamw.param_groups:
            if "limits" in group:
                for parameter in group["params"]:
                    parameter.clamp_(*group["limits"])


def lr_factor(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Learning rate of update number ``step`` (from 0) as a fraction of its peak.

    Warm-up is linear and reaches the peak at its last step. ``cosine`` then falls along half a cosine to the floor;
    ``wsd`` stays at the peak and falls linearly over the last ``decay_fraction`` of all steps.
    """
    warmup = optim.warmup if optim.warmup >= 1 else optim.warmup * total_steps
    num_warmup = round(warmup)
    if step < num_warmup:
        return (step + 1) / num_warmup
    if optim.schedule == "cosine":
        progress = (step - num_warmup) / max(1, total_steps - num_warmup)
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    elif optim.schedule == "wsd":
        num_decay = max(1, round(optim.decay_fraction * total_steps))
        shape = min(1.0, (total_steps - step) / num_decay)
    else:
        return 1.0
    return optim.min_lr_ratio + (1 - optim.min_lr_ratio) * shape


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> float:
    """Scale all gradients together so that their Euclidean norm is at most ``max_norm``; returns the norm before.

    The norm spans all shards where parameters are sharded (a collective); null only measures.
    """
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
