"""Attention of one query a cell to the multi-level features of that cell: what TokenPacker and QueCC share."""

from __future__ import annotations

import torch
from torch import nn

from vlmkit.models.compressors.base import cells, num_heads

NORM_EPS = 1e-6


class CellAttention(nn.Module):
    """Multi-head attention (8 heads, input and output projections) within each square cell of the patch grid.

    Keys and values of a patch are LN(MLP(its levels side by side)), each with an MLP of its own; no residual and no
    norm follow (TokenPacker, arXiv 2407.02392; QueCC, arXiv 2411.03312, Figure 5).
    """

    def __init__(self, width: int, num_levels: int) -> None:
        super().__init__()
        self.key_mlp = normed_mlp(num_levels * width, width)
        self.value_mlp = normed_mlp(num_levels * width, width)
        self.attention = nn.MultiheadAttention(width, num_heads(width), batch_first=True)

    def forward(self, queries: torch.Tensor, levels: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
        """[B, N, D] for queries [B, N, D], one a cell of ``side`` x ``side`` patches, and levels [B, P, L * D]."""
        keys = cells(self.key_mlp(levels), grid, side).flatten(0, 1)
        values = cells(self.value_mlp(levels), grid, side).flatten(0, 1)
        tokens, _ = self.attention(queries.flatten(0, 1).unsqueeze(1), keys, values, need_weights=False)
        return tokens.view_as(queries)


def normed_mlp(inputs: int, width: int) -> nn.Sequential:
    """Linear, GELU, Linear, LN (eps 1e-6), at ``width`` after the first layer."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, eps=NORM_EPS)
    )
