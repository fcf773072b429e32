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
    ``grid``: (height, width) of the patch grid in patches; P = height * width, row by row.
    """

    grid: tuple[int, int]
    patches: torch.Tensor | None = None
    levels: torch.Tensor | None = None
