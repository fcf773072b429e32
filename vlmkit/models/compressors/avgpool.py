"""Average pooling: every visual token is the mean of a square cell of patches."""

from __future__ import annotations

import torch

from vlmkit.models.compressors.base import Compressor, cell_side, cells
from vlmkit.models.features import VisionFeatures


class AveragePool(Compressor):
    """The mean over each k x k cell of the penultimate block's patches. No parameters, blind to the question."""

    requires = frozenset({"patches"})
    conditioned = False
    elastic = True

    def precompute(self, features: VisionFeatures) -> VisionFeatures:
        """The pooled grid itself; pooling it again to the same count leaves it as it is."""
        count = self.shape.num_visual_tokens
        side = cell_side(features.grid, count, self.shape.patch_size)
        grid = (features.grid[0] // side, features.grid[1] // side)
        return VisionFeatures(grid=grid, patches=self(features, None, count))

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        assert features.patches is not None
        side = cell_side(features.grid, num_visual_tokens, self.shape.patch_size)
        return cells(features.patches, features.grid, side).mean(dim=2)
