"""The classification losses of SuperClass, by the names that recipes give them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vlmkit.errors import UserError
from vlmkit.losses.bag_of_tokens import bag_of_tokens_loss
from vlmkit.losses.multi_label import asl_loss, bce_loss, soft_margin_loss
from vlmkit.losses.two_way import two_way_loss

ClassificationLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of features [B, D], weight [V, D], bias [V], ids [B, L] padded with -1 and weights [B, L]: the sum over the batch."""

_LOSSES: dict[str, ClassificationLoss] = {
    "softmax": bag_of_tokens_loss,
    "bce": bce_loss,
    "asl": asl_loss,
    "soft_margin": soft_margin_loss,
    "two_way": two_way_loss,
}


def classification_loss(name: str) -> ClassificationLoss:
    """The loss of that name, or UserError.

    ``weights`` mean the targets for ``softmax``, whose rows sum to one, and for the others how much each label's
    positive term counts, 1 being plain.
    """
    if name not in _LOSSES:
        raise UserError(f"there is no classification loss {name!r}; choose one of {', '.join(_LOSSES)}.")
    return _LOSSES[name]
