"""A linear head and its loss over chunks of rows: the [B, V] logits of a large vocabulary are never held whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

CHUNK_ROWS = 256
"""Rows of logits held at once. With fewer the products with the weight are slower, with more only the memory grows."""
CUDA_CHUNK_ROWS = 1024
"""The same on a GPU: on an H200 (4,096 x 768, bf16) 256 rows took 1.6 times as long, 2,048 rows 0.9 times."""

RowsLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The loss of some rows. Of logits [R, V], label ids [R, L] padded with -1 and weights [R, L], 0 where padded, it
returns the sum over the rows, and it leaves the gradient of that sum in place of the logits."""


def chunked_loss(
    rows_loss: RowsLoss,
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Sum over the batch of ``rows_loss`` of the logits features @ weight.T + bias.

    ``features`` [B, D], ``weight`` [V, D], ``bias`` [V]; ``ids`` [B, L] distinct label ids padded with -1; ``weights``
    [B, L] of the labels, which get no gradient. Returns a scalar of at least float32. Under autocast the logits are
    computed in its dtype; everything after them, and the sum over chunks of the weight's gradient, in float32.

    That ids are distinct is not checked: every label tokenizer gives a caption's bag without repetitions. A copy of
    weight 0 changes nothing; one with a weight of its own has no meaning in ``two_way_loss``, and adds to that of the
    first in the other losses.

    The gradients are made in the forward pass, while a chunk's logits are at hand, and scaled in place by the backward
    pass: memory is one chunk of logits and the gradients themselves, whatever the batch, and no logit is computed
    twice. A second backward pass through the same graph raises RuntimeError.
    """
    weights = weights.detach().masked_fill(ids < 0, 0)
    if not torch.is_grad_enabled():
        features, weight, bias = features.detach(), weight.detach(), bias.detach()
    return _ChunkedLoss.apply(rows_loss, features, weight, bias, ids, weights)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows_loss: RowsLoss,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
        exact = torch.promote_types(dtype, torch.float32)
        params = (features, weight, bias)
        grads = [
            torch.zeros_like(tensor, dtype=exact) if needed else None
            for tensor, needed in zip(params, ctx.needs_input_grad[1:4], strict=True)
        ]
        loss = features.new_zeros((), dtype=exact)
        with torch.autocast(device, enabled=False):
            features, weight, bias = (tensor.to(dtype) for tensor in params)
            chunk_rows = CUDA_CHUNK_ROWS if device == "cuda" else CHUNK_ROWS
            # One piece of memory for the logits of all chunks: on a CPU, fresh pages for each took 4 % of all time.
            room = features.new_empty(min(len(features), chunk_rows), len(weight))
            for start in range(0, len(features), chunk_rows):
                rows = slice(start, start + chunk_rows)
                chunk = features[rows]
                logits = torch.addmm(bias, chunk, weight.t(), out=room[: len(chunk)]).to(exact)
                loss += rows_loss(logits, ids[rows], weights[rows].to(exact))
                _accumulate(grads, logits, rows, features, weight)
                del logits  # before the next chunk's are made
        ctx.save_for_backward(
            *(None if grad is None else grad.to(tensor.dtype) for grad, tensor in zip(grads, params, strict=True))
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: the weight's gradient may be the largest tensor of all, and autograd refuses to read it twice.
        return None, *(None if grad is None else grad.mul_(grad_loss) for grad in ctx.saved_tensors), None, None


def _accumulate(
    grads: list[torch.Tensor | None],
    grad_logits: torch.Tensor,
    rows: slice,
    features: torch.Tensor,
    weight: torch.Tensor,
) -> None:
    """Add the part of one chunk to the gradients of features, weight and bias, of those that are wanted."""
    grad_features, grad_weight, grad_bias = grads
    if grad_bias is not None:
        grad_bias += grad_logits.sum(0)
    grad_logits = grad_logits.to(features.dtype)
    if grad_features is not None:
        grad_features[rows] = grad_logits @ weight
    if grad_weight is not None:
        if grad_logits.dtype == grad_weight.dtype:
            grad_weight.addmm_(grad_logits.t(), features[rows])
        else:
            grad_weight += grad_logits.t() @ features[rows]
