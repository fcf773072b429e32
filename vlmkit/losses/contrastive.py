"""The losses of CLIP and SigLIP, over all pairs of an optimizer step and all ranks, by rows of the pairs' logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

BLOCK_ROWS = 1024
"""Rows of logits held at once: beside 16,384 pairs 64 MiB in float32, a few times over."""

RowsLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of logits [R, N] and the column that matches each row [R]: the loss summed over the rows."""


def contrastive_loss(
    kind: Literal["clip", "siglip"],
    images: torch.Tensor,
    texts: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    gather: bool = True,
) -> torch.Tensor:
    """This rank's part of the loss, a sum over its pairs; the parts of all ranks add up to N times the mean loss.

    clip: mean of the cross entropies of images among texts and of texts among images (arXiv 2103.00020).
    siglip: -log sigmoid of each pair's signed logit, summed over the texts of an image (arXiv 2303.15343).

    ``images`` and ``texts`` [B, E] have length 1, row i of one matches row i of the other; ``logit_scale`` (its
    logarithm) and ``logit_bias`` hold one number. With ``gather``, pairs of different ranks count as negatives; every
    rank then holds as many pairs, and gradients flow back to the rank that owns an embedding, so that DDP's and FSDP2's
    averages over ranks are those of the mean loss. Computed in the precision of the embeddings, whatever autocast says.

    The logits [B, N] of more than BLOCK_ROWS pairs are made by blocks of rows, and once more in the backward pass:
    memory is that of some blocks, at the price of one more product of the embeddings.
    """
    together = gather and dist.is_initialized() and dist.get_world_size() > 1
    start = dist.get_rank() * len(images) if together else 0
    with torch.autocast(images.device.type, enabled=False):
        scale = logit_scale.to(images.dtype).exp()
        bias = torch.zeros_like(scale) if logit_bias is None else logit_bias.to(images.dtype)
        all_texts = _gathered(texts) if together else texts
        if kind == "siglip":
            return _by_blocks(_pairwise, images, all_texts, start, scale, bias)
        all_images = _gathered(images) if together else images
        of_images = _by_blocks(_cross_entropy, images, all_texts, start, scale, bias)
        return (of_images + _by_blocks(_cross_entropy, texts, all_images, start, scale, bias)) / 2


def _gathered(embeddings: torch.Tensor) -> torch.Tensor:
    """Those of all ranks, in rank order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch is renaming its collectives with gradients
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(embeddings))


def _by_blocks(
    rows_loss: RowsLoss,
    rows: torch.Tensor,
    columns: torch.Tensor,
    start: int,
    scale: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """The sum of ``rows_loss`` over logits of rows [B, E] against columns [N, E], of which ``start`` matches row 0."""

    def loss_of(block: torch.Tensor, matching: torch.Tensor) -> torch.Tensor:
        return rows_loss(scale * block @ columns.T + bias, matching)

    matching = torch.arange(start, start + len(rows), device=rows.device)
    if len(rows) <= BLOCK_ROWS:
        return loss_of(rows, matching)
    blocks = zip(rows.split(BLOCK_ROWS), matching.split(BLOCK_ROWS), strict=True)
    losses = [checkpoint(loss_of, *block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
    return torch.stack(losses).sum()


def _cross_entropy(logits: torch.Tensor, matching: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, matching, reduction="sum")


def _pairwise(logits: torch.Tensor, matching: torch.Tensor) -> torch.Tensor:
    # -log sigmoid of the signed logit is softplus of its negative, and only matching pairs have the sign +.
    column = matching[:, None]
    return F.softplus(logits.scatter(1, column, -logits.gather(1, column)), threshold=40).sum()
