"""Pixel shuffle: the patches of a cell side by side along the width, then one linear layer."""

from __future__ import annotations

import torch
from torch import nn

from vlmkit.models.compressors.base import CompressorShape, FixedCells, cells
from vlmkit.models.features import VisionFeatures


class PixelShuffle(FixedCells):
    """Space to depth over k x k cells (InternVL, arXiv 2404.16821), then a linear map to the tower's width, bias-free.

    The width of a cell is ordered as in ``torch.nn.functional.pixel_unshuffle``: by channel, then row by row.
    """

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__(shape)
        self.linear = nn.Linear(self.side**2 * shape.vision_width, shape.vision_width, bias=False)

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        assert features.patches is not None
        self.check_built_for(features.grid, num_visual_tokens)
        return self.linear(cells(features.patches, features.grid, self.side).transpose(2, 3).flatten(2))
