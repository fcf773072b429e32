"""The SuperClass loss: softmax cross entropy between image logits and a caption's weighted bag of tokens."""

from __future__ import annotations

import torch

from vlmkit.losses.chunked import chunked_loss


def bag_of_tokens_loss(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sum over the batch of -sum_c y_c log softmax(x)_c with x = features @ weight.T + bias (SuperClass eq. 1).

    Evaluated in its sparse form sum_c y_c * (logsumexp(x) - x_c), which needs only the ids of the caption. Arguments
    and result as in ``chunked_loss``; ``weights`` are the targets y: rows sum to one, or are all zero for a sample
    without labels, whose loss is zero.
    """
    return chunked_loss(_softmax_rows, features, weight, bias, ids, weights)


def _softmax_rows(logits: torch.Tensor, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    ids = ids.clamp(min=0)  # padding has no mass, so it may point anywhere
    label_logits = logits.gather(1, ids)
    highest = logits.amax(1, keepdim=True)
    total = logits.sub_(highest).exp_().sum(1, keepdim=True)
    loss = (targets * (highest + total.log() - label_logits)).sum()
    logits.mul_(targets.sum(1, keepdim=True) / total).scatter_add_(1, ids, -targets)
    return loss
