"""The SuperClass loss: softmax cross entropy between image logits and a caption's weighted bag of tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

FUSED_FROM = 512
"""Batch size from which the [B, V] logits are never held whole; below it the plain form is as small and simpler."""
CHUNK_ROWS = 256


def bag_of_tokens_loss(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sum over the batch of -sum_c y_c log softmax(x)_c with x = features @ weight.T + bias (SuperClass eq. 1).

    Evaluated in its sparse form sum_c y_c * (logsumexp(x) - x_c), which needs only the ids of the caption.

    ``features`` [B, D], ``weight`` [V, D], ``bias`` [V]; ``ids`` [B, L] distinct token ids padded with -1; ``weights``
    [B, L] their targets y: rows sum to one, or are all zero for a sample without labels, whose loss is zero. Targets
    get no gradient. Returns a scalar of at least float32. Under autocast the logits are computed in its dtype,
    everything after them, and the sum over chunks of the weight's gradient, in float32.
    """
    targets = weights.detach().masked_fill(ids < 0, 0)
    ids = ids.clamp(min=0)
    if len(features) < FUSED_FROM:
        return _plain(features, weight, bias, ids, targets)
    if not torch.is_grad_enabled():
        features, weight, bias = features.detach(), weight.detach(), bias.detach()
    return _ChunkedLoss.apply(features, weight, bias, ids, targets, CHUNK_ROWS)


def _plain(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, ids: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    logits = F.linear(features, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (targets * (logits.logsumexp(1, keepdim=True) - logits.gather(1, ids))).sum()


class _ChunkedLoss(torch.autograd.Function):
    """The loss over chunks of rows, with the gradients made in the forward pass while a chunk's logits are at hand.

    Memory is one chunk of logits and the gradients themselves, whatever the batch; no logit is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        ids: torch.Tensor,
        targets: torch.Tensor,
        chunk_rows: int,
    ) -> torch.Tensor:
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        exact = torch.promote_types(dtype, torch.float32)
        params = (features, weight, bias)
        grads = [
            torch.zeros_like(tensor, dtype=exact) if needed else None
            for tensor, needed in zip(params, ctx.needs_input_grad[:3], strict=True)
        ]
        loss = features.new_zeros((), dtype=exact)
        with torch.autocast(device, enabled=False):
            inputs = tuple(tensor.to(dtype) for tensor in params)
            for start in range(0, len(features), chunk_rows):
                rows = slice(start, start + chunk_rows)
                loss += _accumulate(rows, inputs, ids[rows], targets[rows].to(exact), grads)
        ctx.save_for_backward(
            *(None if grad is None else grad.to(tensor.dtype) for grad, tensor in zip(grads, params, strict=True))
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(None if grad is None else grad * grad_loss for grad in ctx.saved_tensors), None, None, None


def _accumulate(
    rows: slice,
    inputs: tuple[torch.Tensor, ...],
    ids: torch.Tensor,
    targets: torch.Tensor,
    grads: list[torch.Tensor | None],
) -> torch.Tensor:
    """Loss of the rows of one chunk; their part of the gradients is added to ``grads``."""
    features, weight, bias = inputs
    features = features[rows]
    mass = targets.sum(1, keepdim=True)
    logits = torch.addmm(bias, features, weight.t()).to(targets.dtype)
    normaliser = logits.logsumexp(1, keepdim=True)
    loss = (targets * (normaliser - logits.gather(1, ids))).sum()

    grad_features, grad_weight, grad_bias = grads
    if grad_features is None and grad_weight is None and grad_bias is None:
        return loss
    grad = logits.sub_(normaliser).exp_().mul_(mass).scatter_add_(1, ids, -targets)
    if grad_bias is not None:
        grad_bias += grad.sum(0)
    grad = grad.to(features.dtype)
    if grad_features is not None:
        grad_features[rows] = grad @ weight
    if grad_weight is not None:
        if grad.dtype == grad_weight.dtype:
            grad_weight.addmm_(grad.t(), features)
        else:
            grad_weight += grad.t() @ features
    return loss
