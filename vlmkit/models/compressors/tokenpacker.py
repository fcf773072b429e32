"""TokenPacker: coarse queries attend to the multi-level features of their cells (arXiv 2407.02392)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from vlmkit import registry
from vlmkit.models.compressors.base import Compressor, CompressorShape, cell_side, truncated_normal
from vlmkit.models.compressors.cell_attention import NORM_EPS, CellAttention
from vlmkit.models.features import VisionFeatures


class TokenPacker(Compressor):
    """The patch grid, shrunk bilinearly to one vector a cell, queries the multi-level features of each cell.

    Queries are LN(W x) of the shrunken grid (W without bias, LN with eps 1e-6); the token of a cell is their
    :class:`CellAttention`. Linear weights start truncated normal with deviation 0.02, as in the published code. No
    weight depends on the cell side, so one module serves every count that tiles the grid.
    """

    requires = frozenset({"patches", "levels"})
    level_fractions = registry.PAPER_LEVELS
    elastic = True

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__(shape)
        width = shape.vision_width
        self.query = nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width, eps=NORM_EPS))
        self.attention = CellAttention(width, len(self.levels))
        self.apply(truncated_normal)

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        assert features.patches is not None and features.levels is not None
        side = cell_side(features.grid, num_visual_tokens, self.shape.patch_size)
        grid = features.patches.transpose(1, 2).unflatten(2, features.grid)
        coarse = F.interpolate(grid, size=(features.grid[0] // side, features.grid[1] // side), mode="bilinear")
        queries = self.query(coarse.flatten(2).transpose(1, 2))
        return self.attention(queries, features.levels, features.grid, side)
