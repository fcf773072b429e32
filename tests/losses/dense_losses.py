"""Random captions for the tests of the losses, and the losses' formulas written down densely in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Batch = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]
"""Features, weight and bias of a linear head; ids; weights."""


def random_batch(rows: int, vocab: int = 37, length: int = 9, width: int = 6, seed: int = 0) -> Batch:
    """Float64; each row has between none and all of ``length`` distinct labels, with padding anywhere among them."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(vocab, generator=g)[:length] for _ in range(rows)])
    ids = ids.masked_fill(torch.rand(ids.shape, generator=g) < torch.rand(rows, 1, generator=g), -1)
    shapes = (rows, width), (vocab, width), (vocab,)
    head = [torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]
    return head, ids, torch.rand(ids.shape, generator=g, dtype=torch.float64) + 0.1


def proper_weights(name: str, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What the loss of that name is given: for softmax rows that sum to one, or zero."""
    if name != "softmax":
        return weights
    weights = weights.masked_fill(ids < 0, 0)
    total = weights.sum(1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)


def dense_loss(name: str, head: list[torch.Tensor], ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The named loss by its formula, from all [B, V] logits and targets."""
    features, weight, bias = (tensor.double() for tensor in head)
    present = torch.zeros(len(ids), len(weight), dtype=torch.bool)
    targets = torch.zeros(present.shape, dtype=torch.float64)
    for row, column in (ids >= 0).nonzero().tolist():
        present[row, ids[row, column]] = True
        targets[row, ids[row, column]] += weights[row, column]
    return FORMULAS[name](features @ weight.T + bias, present, targets)


def softmax(logits: torch.Tensor, present: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -(targets * logits.log_softmax(1)).sum()


def bce(logits: torch.Tensor, present: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.where(present, -weights * F.logsigmoid(logits), -F.logsigmoid(-logits)).sum()


def soft_margin(logits: torch.Tensor, present: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.where(present, -weights * F.logsigmoid(logits), -F.logsigmoid(-logits)).mean(1).sum()


def asl(logits: torch.Tensor, present: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    p = logits.sigmoid()
    q = (p - 0.05).clamp(min=0)
    return -torch.where(present, weights * p.log(), q**4 * (1 - q).log()).sum()


def two_way(logits: torch.Tensor, present: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    def term(x: torch.Tensor, labelled: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        positive = labelled & (w > 0)
        if labelled.all() or not positive.any():
            return x.sum() * 0
        negatives = x[~labelled].exp().sum().log()
        positives = 4 * (w[positive] * (-x[positive] / 4).exp()).sum().log()
        return (1 + (negatives + positives).exp()).log()

    rows = [term(*row) for row in zip(logits, present, weights, strict=True)]
    columns = [term(*column) for column in zip(logits.T, present.T, weights.T, strict=True)]
    num_classes = max(int((weights > 0).any(0).sum()), 1)
    return torch.stack(rows).sum() + len(logits) * torch.stack(columns).sum() / num_classes


FORMULAS = {"softmax": softmax, "bce": bce, "asl": asl, "soft_margin": soft_margin, "two_way": two_way}
"""Of logits, which labels are present, and their weights, all [B, V]."""
