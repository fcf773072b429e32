"""Multi-label losses that judge every class of a caption by itself: BCE, soft margin, and the asymmetric loss.

In all of them a label is never a negative, whatever it weighs, and a caption without labels is all negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from vlmkit.losses.chunked import chunked_loss

FOCUS = 4
"""Exponent gamma- by which the asymmetric loss discounts easy negatives; positives are not discounted (gamma+ 0)."""
MARGIN = 0.05
"""Probability below which the asymmetric loss ignores a negative."""


def bce_loss(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sum over the batch, and over all classes, of the binary cross entropy of each logit x_c.

        sum_{c in S} -w_c log sigmoid(x_c)  +  sum_{c not in S} -log(1 - sigmoid(x_c))

    S are the labels ``ids`` and w their ``weights``, 1 for plain BCE. Summed over classes, as CatLIP trains (arXiv
    2404.15653, published configuration), so that a label's gradient does not shrink with the vocabulary; table 6 of
    the SuperClass paper does not say what its BCE does. Arguments and result as in ``chunked_loss``.
    """
    return chunked_loss(partial(_rows_loss, _bce_of_negatives), features, weight, bias, ids, weights)


def soft_margin_loss(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """``bce_loss`` averaged over the V classes instead of summed: torch's MultiLabelSoftMarginLoss.

    Under Adam, whose steps do not depend on the scale of the gradients, it differs from BCE only through epsilon, and
    through clipping: a limit of the gradient norm binds V times later here, so compare the two with ``clip_norm`` null.
    """
    return bce_loss(features, weight, bias, ids, weights) / len(weight)


def asl_loss(
    features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Sum over the batch, and over all classes, of the asymmetric loss (arXiv 2009.14119) of p_c = sigmoid(x_c).

        sum_{c in S} -w_c log p_c  +  sum_{c not in S} -q_c^4 log(1 - q_c),   q_c = max(p_c - 0.05, 0)

    S are the labels ``ids`` and w their ``weights``, 1 for the plain loss; the gradient runs through q^4 as well.
    Arguments and result as in ``chunked_loss``.
    """
    return chunked_loss(partial(_rows_loss, _asl_of_negatives), features, weight, bias, ids, weights)


def set_labels_aside(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the labels ``ids`` [R, L], padded with -1, out of ``logits`` [R, V], in which they become -inf.

    Returns ids that can index, those of padding being 0, and the logits at them, both [R, L].
    """
    index = ids.clamp(min=0)
    label_logits = logits.gather(1, index)
    # Added, not set: padding points at class 0, which must stay as it is.
    logits.scatter_add_(1, index, torch.zeros_like(label_logits).masked_fill_(ids >= 0, -math.inf))
    return index, label_logits


def softplus(logits: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)) to the last bits: torch's own default is off by 2e-9 above 20."""
    return F.softplus(logits, threshold=40)


def _rows_loss(
    loss_of_negatives: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    index, label_logits = set_labels_aside(logits, ids)
    loss = (weights * softplus(-label_logits)).sum() + loss_of_negatives(logits)
    logits.scatter_add_(1, index, -weights * (-label_logits).sigmoid())
    return loss


def _bce_of_negatives(logits: torch.Tensor) -> torch.Tensor:
    loss = softplus(logits).sum()
    logits.sigmoid_()
    return loss


def _asl_of_negatives(logits: torch.Tensor) -> torch.Tensor:
    p = logits.sigmoid_()
    q = (p - MARGIN).clamp_(min=0)
    log_rest = q.neg().log1p_()
    loss = -q.pow(FOCUS - 1).mul_(q).mul_(log_rest).sum()
    # d/dx -q^g log(1 - q) = q^(g-1) (q / (1 - q) - g log(1 - q)) p (1 - p), and nothing below the margin, where q = 0.
    slope = log_rest.mul_(-FOCUS).addcdiv_(q, 1 - q).mul_(q.pow_(FOCUS - 1))
    p.mul_(1 - p).mul_(slope)
    return loss
