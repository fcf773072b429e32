"""Optimizer groups of a model's named parts: rates, weight decay and limits, by one rule for every task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from vlmkit.config import OptimConfig
from vlmkit.errors import UserError


def parameter_groups(
    parts: Mapping[str, Iterable[nn.Parameter]],
    optim: OptimConfig,
    *,
    owner: str,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of ``parts`` as groups; ``optim.lr_multipliers`` may scale the rate of a part.

    Weight decay is for tensors of two or more dimensions, which leaves out norms, biases and the logit scale (the
    published rule). Class tokens follow their shape: open_clip's is a vector, timm's decays. ``limits`` gives the range
    that the optimizer keeps a part's values in. Raises UserError if a multiplier names no part of ``owner``.
    """
    unknown = optim.lr_multipliers.keys() - parts.keys()
    if unknown:
        raise UserError(
            f"lr_multipliers names {', '.join(sorted(unknown))}, which {owner} does not have; "
            f"name one of its parts: {', '.join(parts)}."
        )
    groups = []
    for name, parameters in parts.items():
        trained = [p for p in parameters if p.requires_grad]
        shared: dict[str, Any] = {"lr": optim.lr * optim.lr_multipliers.get(name, 1.0)}
        if limits and name in limits:
            shared["limits"] = limits[name]
        matrices = [p for p in trained if p.ndim >= 2]
        vectors = [p for p in trained if p.ndim < 2]
        groups.append({"name": name, "params": matrices, "weight_decay": optim.weight_decay, **shared})
        groups.append({"name": f"{name} vectors", "params": vectors, "weight_decay": 0.0, **shared})
    return [group for group in groups if group["params"]]
