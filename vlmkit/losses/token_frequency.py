"""How many captions each token occurs in, counted exactly, and the weights that follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


class TokenFrequency(nn.Module):
    """Document frequencies of caption tokens: running, over all ranks, or counted ahead.

    ``document_frequency`` [V] counts the captions that contain a token, ``num_documents`` [] the captions seen. Both
    are int64 buffers: they travel in the checkpoint, and no cast of the module touches them. Reading weights never
    changes the counts; only ``update`` does.

    The weight of token c after n captions, df(c) of which contain it, is by ``formula``

    * ``code``: log((n + 1) / (df(c) + 1)), the running form of SuperClass's code, in which a token of every caption
      weighs exactly nothing;
    * ``paper``: log(n / (df(c) + 1)), SuperClass eq. 2 as printed, which is slightly negative for a token of (almost)
      every caption; such weights are set to 0.

    Counting ends where ``frozen_after`` captions are counted: an optimizer step that begins there or later changes
    nothing. ``corpus`` (document frequencies [V] and number of captions) puts in counts made ahead, which never change.
    """

    document_frequency: torch.Tensor
    num_documents: torch.Tensor

    def __init__(
        self,
        vocab_size: int,
        formula: Literal["code", "paper"] = "code",
        frozen_after: int | None = None,
        corpus: tuple[np.ndarray, int] | None = None,
    ) -> None:
        super().__init__()
        counts, num_documents = (np.zeros(vocab_size, dtype=np.int64), 0) if corpus is None else corpus
        self.formula = formula
        self.frozen_after = frozen_after if corpus is None else 0
        self.register_buffer("document_frequency", torch.tensor(counts, dtype=torch.int64))
        self.register_buffer("num_documents", torch.tensor(num_documents, dtype=torch.int64))

    @torch.no_grad()
    def update(self, ids: Sequence[torch.Tensor]) -> int:
        """Count the captions of one optimizer step and return how many there are over all ranks.

        ``ids``: tensors [B, L] of distinct token ids, padded with -1; on this rank, one per micro-batch. One
        all-reduce where several ranks train together, so every rank must call it, once a step. Frozen counts stay.
        """
        # Every rank and every resumed run holds the same number of captions here, so all agree.
        frozen = self.frozen_after is not None and int(self.num_documents) >= self.frozen_after
        if frozen:
            counts = self.num_documents.new_zeros(1)
        else:
            # Shifted by one, padding falls into slot 0, which then carries the number of captions instead.
            shifted = torch.cat([batch.flatten() for batch in ids]) + 1
            counts = torch.bincount(shifted, minlength=len(self.document_frequency) + 1)
        counts[0] = sum(len(batch) for batch in ids)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts)
        if not frozen:
            self.document_frequency += counts[1:]
            self.num_documents += counts[0]
        return int(counts[0])

    def weights(self, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Weight of each id, in the shape of ``ids``; padding (-1) weighs 0. Formed in float64, given as ``dtype``."""
        seen = self.num_documents.double() + (self.formula == "code")
        containing = self.document_frequency[ids.clamp(min=0)].double() + 1
        # A difference of logarithms is exactly 0 for a token of every caption; the logarithm of a quotient is not.
        weights = (seen.log() - containing.log()).clamp(min=0)
        return weights.masked_fill(ids < 0, 0).to(dtype)

    def normalised(self, ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The targets of eq. 2 at ``ids`` [B, L]: weights whose rows sum to one, or are all zero."""
        return normalise_rows(self.weights(ids, torch.float64)).to(dtype)


def normalise_rows(weights: torch.Tensor) -> torch.Tensor:
    """Divide each row of non-negative ``weights`` [B, L] by its sum; a row of zeros stays one."""
    total = weights.sum(1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)
