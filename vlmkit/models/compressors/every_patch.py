"""No compression: every patch is a visual token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlmkit.errors import UserError
from vlmkit.models.compressors.base import Compressor
from vlmkit.models.features import VisionFeatures


class EveryPatch(Compressor):
    """The penultimate block's patches as they are: the uncompressed baseline (LLaVA-1.5)."""

    def legal_counts(self, grid: tuple[int, int]) -> Sequence[int]:
        """The number of patches."""
        return [grid[0] * grid[1]]

    def check_count(self, count: int) -> None:
        if count != self.shape.num_patches:
            height, width = self.shape.grid
            raise UserError(
                f"Without compression every patch of the {height} x {width} grid is a visual token: ask for "
                f"{self.shape.num_patches}, not {count}, or choose a compressor."
            )

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        assert features.patches is not None
        self.check_count(num_visual_tokens)
        return features.patches
