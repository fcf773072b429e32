"""What a vision tower hands to a compressor."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VisionFeatures:
    """Features of a batch of images; a field is None unless it was asked for.

    ``patches`` [B, P, D]: patch features of the penultimate block, no class token (the LLaVA convention); of a convnet,
    the last feature map.
    ``levels`` [B, P, L * D]: patch features of L chosen blocks, side by side along the width.
    ``attention`` [B, P]: the attention that each patch receives in the penultimate block, a mean over its heads: from
    the class token where that is what the tower pools, else a mean over all patches.
    ``keys`` [B, P, D / heads]: the keys of the patches in that block, a mean over its heads.
    ``grid``: (height, width) of the patch grid in patches; P = height * width, row by row.
    """

    grid: tuple[int, int]
    patches: torch.Tensor | None = None
    levels: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    keys: torch.Tensor | None = None
