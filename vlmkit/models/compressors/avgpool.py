"""Average pooling: every visual token is the mean of a square cell of patches."""

from __future__ import annotations

import math

import torch

from vlmkit.models.compressors.base import Compressor, cell_side, cells
from vlmkit.models.features import VisionFeatures


class AveragePool(Compressor):
    """The mean over each k x k cell of the penultimate block's patches. No parameters, blind to the question.

    Several counts are nested as in M3 (arXiv 2405.17430): the mean of a cell is that of the means of its parts.
    """

    elastic = True

    @property
    def cached_content(self) -> str:
        return f"patches, means on a grid of {self._cached_grid[0]} x {self._cached_grid[1]}"

    @property
    def cached_shape(self) -> tuple[int, int]:
        return self._cached_grid[0] * self._cached_grid[1], self.shape.vision_width

    @property
    def _cached_side(self) -> int:
        """Side of the largest cells that those of every count are made of, in patches."""
        return math.gcd(*(cell_side(self.shape.grid, count, self.shape.patch_size) for count in self.shape.counts))

    @property
    def _cached_grid(self) -> tuple[int, int]:
        return self.shape.grid[0] // self._cached_side, self.shape.grid[1] // self._cached_side

    def to_cache(self, features: VisionFeatures) -> torch.Tensor:
        """The means on the coarsest grid from which every count can still be pooled."""
        assert features.patches is not None
        return cells(features.patches, features.grid, self._cached_side).mean(dim=2)

    def from_cache(self, cached: torch.Tensor) -> VisionFeatures:
        return VisionFeatures(self._cached_grid, cached)

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        assert features.patches is not None
        side = cell_side(features.grid, num_visual_tokens, self.shape.patch_size)
        return cells(features.patches, features.grid, side).mean(dim=2)
