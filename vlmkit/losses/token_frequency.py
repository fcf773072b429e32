"""How many captions each token occurs in, counted exactly while training, and the weights that follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


class TokenFrequency(nn.Module):
    """Running document frequencies of caption tokens, over all ranks.

    ``document_frequency`` [V] counts the captions that contain a token, ``num_documents`` [] the captions seen. Both
    are int64 buffers: they travel in the checkpoint, and no cast of the module touches them. Reading weights never
    changes the counts; only ``update`` does.

    The weight of token c after n captions is log((n + 1) / (df(c) + 1)): the running form of SuperClass eq. 2, in
    which a token of every caption weighs exactly nothing.
    """

    document_frequency: torch.Tensor
    num_documents: torch.Tensor

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.register_buffer("document_frequency", torch.zeros(vocab_size, dtype=torch.int64))
        self.register_buffer("num_documents", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, ids: Sequence[torch.Tensor]) -> int:
        """Count the captions of one optimizer step and return how many there are over all ranks.

        ``ids``: tensors [B, L] of distinct token ids, padded with -1; on this rank, one per micro-batch. One
        all-reduce where several ranks train together, so every rank must call it, once a step.
        """
        # Shifted by one, padding falls into slot 0, which then carries the number of captions instead.
        shifted = torch.cat([batch.flatten() for batch in ids]) + 1
        counts = torch.bincount(shifted, minlength=len(self.document_frequency) + 1)
        counts[0] = sum(len(batch) for batch in ids)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(counts)
        self.document_frequency += counts[1:]
        self.num_documents += counts[0]
        return int(counts[0])

    def weights(self, ids: torch.Tensor) -> torch.Tensor:
        """Weight of each id, float32 of the shape of ``ids``; padding (-1) weighs 0."""
        seen = self.num_documents.double() + 1
        containing = self.document_frequency[ids.clamp(min=0)].double() + 1
        # A difference of logarithms is exactly 0 for a token of every caption; the logarithm of a quotient is not.
        return (seen.log() - containing.log()).masked_fill(ids < 0, 0).float()

    def normalised(self, ids: torch.Tensor) -> torch.Tensor:
        """The targets of eq. 2 at ``ids`` [B, L]: weights whose rows sum to one, or are all zero."""
        return normalise_rows(self.weights(ids))


def normalise_rows(weights: torch.Tensor) -> torch.Tensor:
    """Divide each row of non-negative ``weights`` [B, L] by its sum; a row of zeros stays one."""
    total = weights.sum(1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)
