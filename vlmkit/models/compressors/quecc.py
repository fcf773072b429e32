"""QueCC: query-conditioned cell-wise attention to multi-level features (arXiv 2411.03312, Figure 5)."""

from __future__ import annotations

import torch
from torch import nn

from vlmkit.errors import UserError
from vlmkit.models.compressors.base import Compressor, CompressorShape, cell_side, cells
from vlmkit.models.features import VisionFeatures

NORM_EPS = 1e-6
MAX_HEADS = 8


class QueCC(Compressor):
    """One query a cell, formed from its patches and the question, attends to the multi-level features of that cell.

    With patches X, levels M (side by side), question vector q, cell side k and LN with eps 1e-6:

        X~ = X + 1 LN(W q + b),   Q = DWConv_{k,k}(LN(MLP_q(X~))),   K = LN(MLP_k(M)),   U = LN(MLP_v(M)),

    and the token of a cell is the multi-head attention (8 heads, with input and output projections) of its Q over the
    k^2 keys and values of the same cell; no residual and no norm follow. Every MLP is Linear, GELU, Linear at the
    tower's width. The depthwise kernel equals its stride, the cell side, so the number of tokens is fixed at
    construction.
    """

    requires = frozenset({"patches", "levels"})
    level_fractions = (12 / 24, 16 / 24, 22 / 24, 23 / 24)
    conditioned = True

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__(shape)
        width = shape.vision_width
        side = cell_side(shape.grid, shape.num_visual_tokens, shape.patch_size)
        self.question = nn.Linear(shape.text_width, width)
        self.question_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query_mlp = _normed_mlp(width, width)
        self.query_conv = nn.Conv2d(width, width, kernel_size=side, stride=side, groups=width)
        self.key_mlp = _normed_mlp(len(self.levels) * width, width)
        self.value_mlp = _normed_mlp(len(self.levels) * width, width)
        self.attention = nn.MultiheadAttention(width, num_heads(width), batch_first=True)

    def legal_counts(self, grid: tuple[int, int]) -> list[int]:
        """Token counts that tile a patch grid with the cells this module was built for: one at most."""
        side = self.query_conv.kernel_size[0]
        return [] if grid[0] % side or grid[1] % side else [(grid[0] // side) * (grid[1] // side)]

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        assert features.patches is not None and features.levels is not None and query is not None
        if num_visual_tokens not in self.legal_counts(features.grid):
            legal = ", ".join(map(str, self.legal_counts(features.grid))) or "none"
            raise UserError(
                f"This QueCC was built for {self.shape.num_visual_tokens} visual tokens and cannot give "
                f"{num_visual_tokens} (legal here: {legal}); train one for that count."
            )
        side = self.query_conv.kernel_size[0]
        batch, _, width = features.patches.shape
        question = self.question_norm(self.question(query)).unsqueeze(1)
        grid_queries = self.query_mlp(features.patches + question).transpose(1, 2).unflatten(2, features.grid)
        queries = self.query_conv(grid_queries).flatten(2).transpose(1, 2)
        keys = cells(self.key_mlp(features.levels), features.grid, side).flatten(0, 1)
        values = cells(self.value_mlp(features.levels), features.grid, side).flatten(0, 1)
        tokens, _ = self.attention(queries.reshape(-1, 1, width), keys, values, need_weights=False)
        return tokens.view(batch, num_visual_tokens, width)


def num_heads(width: int) -> int:
    """Attention heads for a width: 8 as in the paper, or the largest smaller number that divides the width."""
    return next(heads for heads in range(MAX_HEADS, 0, -1) if width % heads == 0)


def _normed_mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, eps=NORM_EPS)
    )
