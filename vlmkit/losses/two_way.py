"""The two-way multi-label loss: labels against the other classes of a sample, and against the other samples."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F

from vlmkit.losses.chunked import chunked_loss
from vlmkit.losses.multi_label import set_labels_aside, softplus

TEMPERATURE = 4.0
"""T of the positives: above 1, it lets more labels than the hardest count. That of the negatives is 1."""


def two_way_loss(
    features: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    classes: ClassSums | None = None,
) -> torch.Tensor:
    """Two-way multi-label loss (Kobayashi, CVPR 2023) of the logits x [B, V], with its published temperature T = 4.

        sum_b l(x_b.) + B mean_c l(x_.c),   l(x) = softplus(log sum_neg exp(x) + T log sum_pos w exp(-x / T))

    In a row ``pos`` are the sample's labels and ``neg`` all other classes; in a column ``pos`` are the samples that the
    class labels and ``neg`` all others. The mean is over the classes that label a sample of the batch. ``w`` are the
    ``weights``, 1 for the plain loss; a label of weight 0 or less is neither positive nor negative. A caption without
    labels has no term of its own, but is a negative of every class.

    Divided by B this is the published loss, if every caption has a label. The logits are computed twice, for a class
    must be known whole before its gradient is. Where a batch is divided, ``classes`` are the sums of all of it, made
    ahead by the same weights; the call then returns the share of its own rows, and shares and gradients add up to those
    of the whole. Without them the rows given are the batch. Other arguments and result as in ``chunked_loss``.
    """
    if classes is None:
        classes = ClassSums()
        classes.add(features, weight, bias, ids, weights)
    return chunked_loss(partial(_rows_loss, *classes.term()), features, weight, bias, ids, weights)


class ClassSums:
    """The logarithms of both sums of every class over the rows added so far: what ``two_way_loss`` asks of a batch."""

    def __init__(self) -> None:
        self.negatives = self.positives = torch.tensor(-math.inf)
        self.num_rows = 0

    @torch.no_grad()
    def add(
        self,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        """Take in the rows of one call of ``two_way_loss``."""
        chunked_loss(self._add_rows, features, weight, bias, ids, weights)

    def gather(self) -> None:
        """Add up the sums of all ranks, each of which holds as many rows; collective."""
        mine = torch.stack([self.negatives, self.positives])
        everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, mine)
        self.negatives, self.positives = torch.stack(everyones).logsumexp(0)
        self.num_rows *= len(everyones)

    def _add_rows(self, logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """A rows' loss of zero, for what it learns on the way."""
        index, exponents = _positives(logits, ids, weights)
        self.negatives = torch.logaddexp(self.negatives.to(logits), logits.logsumexp(0))
        positives = logits.fill_(-math.inf).scatter_reduce_(1, index, exponents, "amax")
        self.positives = torch.logaddexp(self.positives.to(logits), positives.logsumexp(0))
        self.num_rows += len(logits)
        return logits.new_zeros(())

    def term(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The second term per row of the batch, [], and its log slopes as in ``_two_way``, [V] each."""
        losses, at_negatives, at_positives = _two_way(self.negatives, self.positives)
        num_classes = (self.positives > -math.inf).sum().clamp(min=1).to(losses.dtype)
        share = (self.num_rows / num_classes).log()
        return losses.sum() / num_classes, at_negatives + share, at_positives + share


def _rows_loss(
    class_loss: torch.Tensor,
    class_at_negatives: torch.Tensor,
    class_at_positives: torch.Tensor,
    logits: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    index, exponents = _positives(logits, ids, weights)
    losses, at_negatives, at_positives = _two_way(
        logits.logsumexp(1, keepdim=True), exponents.logsumexp(1, keepdim=True)
    )
    of_classes = (logits + class_at_negatives).exp_()
    logits.add_(at_negatives).exp_().add_(of_classes)
    slopes = (exponents + at_positives).exp_() + (exponents + class_at_positives[index]).exp_()
    logits.scatter_add_(1, index, -slopes)
    return losses.sum() + len(logits) * class_loss


def _positives(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that can index, and the exponents log w - x / T of the labels: -inf where padded or of no weight."""
    index, label_logits = set_labels_aside(logits, ids)
    return index, weights.clamp(min=0).log() - label_logits / TEMPERATURE


def _two_way(negatives: torch.Tensor, positives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """l = softplus(N + T P) of N = log sum_neg exp(x) and P = log sum_pos exp(u), with u = log w - x / T.

    Also the offsets a, b with which its slopes are dl/dx = exp(x + a) at a negative and -exp(u + b) at a positive. A
    side that is empty, -inf, makes l and its slopes 0.
    """
    lowest = torch.finfo(negatives.dtype).min  # not -inf, whose differences are not numbers
    negatives, positives = negatives.clamp(min=lowest), positives.clamp(min=lowest)
    margin = negatives + TEMPERATURE * positives
    outer = F.logsigmoid(margin)
    return softplus(margin), outer - negatives, outer - positives
