"""The losses of CLIP and SigLIP, over all pairs of an optimizer step and all ranks: open_clip's own."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.distributed as dist


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
    """
    from open_clip.loss import ClipLoss, SigLipLoss

    together = gather and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    loss: torch.nn.Module
    if kind == "clip":
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
    else:
        # Of open_clip's ways to exchange texts, this one is a plain collective on gloo and NCCL alike.
        loss = SigLipLoss(rank=rank, world_size=world_size, dist_impl="gather")
    with torch.autocast(images.device.type, enabled=False), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # open_clip gathers by a function that torch is renaming
        scale = logit_scale.to(images.dtype).exp()
        bias = None if logit_bias is None else logit_bias.to(images.dtype)
        return loss(images, texts, scale, bias) * len(images)
