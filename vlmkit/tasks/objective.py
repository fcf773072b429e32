"""What an objective is: one way to learn from the captions of images that a tower has read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from vlmkit.contracts import Batch

EmbedAhead = Callable[[], Sequence[torch.Tensor]]
"""What the objective reads of the images of each micro-batch of the step, [B, width] each, without gradients. They are
computed when they are first asked for."""


class Objective(Protocol):
    """A head on pooled image features [B, width], with its loss. Implementations are ``torch.nn.Module``s.

    ``limits`` names parts whose values the optimizer keeps in a range.
    """

    limits: Mapping[str, tuple[float, float]]

    def begin_step(self, micro_batches: Sequence[Batch], embed_ahead: EmbedAhead) -> int:
        """``contracts.Task.begin_step``; the targets are the samples."""
        ...

    def loss_sum(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss of a training micro-batch, such that its sum over micro-batches and ranks, over the number of
        samples, is the mean loss of the step."""
        ...

    def held_out(self, features: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, tuple[float, float]]]:
        """The summed loss of a held-out batch, and metrics by name as (sum, weight); changes no state."""
        ...

    def parts(self) -> dict[str, Iterable[nn.Parameter]]:
        """Parameters by the names that ``optim.lr_multipliers`` uses."""
        ...
