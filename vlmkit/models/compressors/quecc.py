"""QueCC: query-conditioned cell-wise attention to multi-level features (arXiv 2411.03312, Figure 5)."""

from __future__ import annotations

import torch
from torch import nn

from vlmkit import registry
from vlmkit.models.compressors.base import CompressorShape, FixedCells, cells, truncated_normal
from vlmkit.models.compressors.cell_attention import NORM_EPS, CellAttention, normed_mlp
from vlmkit.models.features import VisionFeatures


class QueCC(FixedCells):
    """One query a cell, formed from its patches and the question, attends to the multi-level features of that cell.

    With patches X, levels M (side by side), question vector q, cell side k and LN with eps 1e-6:

        X~ = X + 1 LN(W q + b),   Q = DWConv_{k,k}(LN(MLP_q(X~))),   K = LN(MLP_k(M)),   U = LN(MLP_v(M)),

    and the token of a cell is the :class:`CellAttention` of its Q over the k^2 keys and values of the same cell. Every
    MLP is Linear, GELU, Linear at the tower's width. The depthwise kernel equals its stride, the cell side, so the
    number of tokens is fixed at construction. Without a question vector, X~ = X. Cells of one
    patch leave no choice: attention to a single key is blind to the question.
    """

    requires = frozenset({"patches", "levels"})
    level_fractions = registry.PAPER_LEVELS
    reads_question = True

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__(shape)
        width = shape.vision_width
        if shape.text_width is not None:
            self.question = nn.Sequential(nn.Linear(shape.text_width, width), nn.LayerNorm(width, eps=NORM_EPS))
        self.query_mlp = normed_mlp(width, width)
        self.query_conv = nn.Conv2d(width, width, kernel_size=self.side, stride=self.side, groups=width)
        self.attention = CellAttention(width, len(self.levels))

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        assert features.patches is not None and features.levels is not None
        self.check_built_for(features.grid, num_visual_tokens)
        told = features.patches
        if self.conditioned:
            assert query is not None
            told = told + self._question_term(query).unsqueeze(1)
        grid_queries = self.query_mlp(told).transpose(1, 2).unflatten(2, features.grid)
        queries = self.query_conv(grid_queries).flatten(2).transpose(1, 2)
        return self.attention(queries, features.levels, features.grid, self.side)

    def _question_term(self, query: torch.Tensor) -> torch.Tensor:
        """What the question adds to every patch: [B, D]."""
        return self.question(query)


class QueCCPlus(QueCC):
    """QueCC that starts as average pooling and learns away from it, against loss spikes at many tokens.

    Spikes of the published module were reported at 144 tokens. Three changes: the mean of the cell's patches is added
    to the attention's output, whose output projection starts at zero; a gate, one number a channel and zero at the
    start, multiplies what the question adds; the other weights start truncated normal with deviation 0.02, as
    TokenPacker's. So a fresh module gives the tokens of ``avgpool`` for any question.
    """

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__(shape)
        self.apply(truncated_normal)
        nn.init.zeros_(self.attention.attention.out_proj.weight)
        if self.conditioned:
            self.gate = nn.Parameter(torch.zeros(shape.vision_width))

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        attended = super().forward(features, query, num_visual_tokens)
        assert features.patches is not None
        return cells(features.patches, features.grid, self.side).mean(dim=2) + attended

    def _question_term(self, query: torch.Tensor) -> torch.Tensor:
        return self.gate * super()._question_term(query)
