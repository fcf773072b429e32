"""Resampler: learned queries attend to all patches, and the first m of them give m tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from vlmkit.models.compressors.base import (
    Compressor,
    CompressorShape,
    check_at_most,
    num_heads,
    truncated_normal,
)
from vlmkit.models.compressors.cell_attention import NORM_EPS
from vlmkit.models.features import VisionFeatures


class Resampler(Compressor):
    """One cross-attention layer of learned queries over all patches (Qwen-VL, arXiv 2308.12966).

    With patches X, learned queries R and fixed two-dimensional sine positions S, tokens are the multi-head attention
    (8 heads) of queries LN(R), keys LN(X) + S and values LN(X), the LN of X being shared. The first m queries give m
    tokens, so one module, trained at several m, serves any number up to its largest (MQT, arXiv 2405.19315; its
    published code attends by position alone, with no X in the keys).
    """

    elastic = True

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__(shape)
        width = shape.vision_width
        self.queries = nn.Parameter(torch.empty(shape.num_visual_tokens, width))
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.patch_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = nn.MultiheadAttention(width, num_heads(width), batch_first=True)
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.apply(truncated_normal)

    def legal_counts(self, grid: tuple[int, int]) -> Sequence[int]:
        """Any number up to the number of queries."""
        return range(1, self.shape.num_visual_tokens + 1)

    def check_count(self, count: int) -> None:
        check_at_most(count, self.shape.num_patches, "patches")

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        assert features.patches is not None
        check_at_most(num_visual_tokens, len(self.queries), "learned queries")
        batch, _, width = features.patches.shape
        values = self.patch_norm(features.patches)
        keys = values + sine_positions(features.grid, width).to(values)
        queries = self.query_norm(self.queries[:num_visual_tokens]).expand(batch, -1, -1)
        return self.attention(queries, keys, values, need_weights=False)[0]


def sine_positions(grid: tuple[int, int], width: int) -> torch.Tensor:
    """Fixed positions of a patch grid, row by row: [h * w, width].

    A half for the column and a half for the row, each sines and then cosines at frequencies 10000^(-i / n), i < n =
    width / 4 (rounded down; what is left of the width is zero).
    """
    count = width // 4
    frequencies = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / max(1, count))
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    positions = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return F.pad(positions, (0, width - 4 * count))
