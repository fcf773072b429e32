"""Pruning: the most attended patches, and what is left of the others in a few merged ones. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.models.compressors.base import Compressor, check_at_most
from vlmkit.models.features import VisionFeatures


class Prune(Compressor):
    """VisionZip (arXiv 2412.04467): dominant tokens by attention, contextual tokens by merging; no parameters.

    Of N tokens, round(10 / 64 N) are contextual. Dominant are the patches with the highest ``attention``. Of the
    others, evenly spaced ones are targets; every other joins the target whose key has the highest cosine, and a
    contextual token is a target plus the mean of the patches that joined it, as in the published code. Dominant tokens
    come first, both kinds row by row. Unlike there, the class token itself is not a visual token.
    """

    requires = frozenset({"patches", "attention", "keys"})
    elastic = True

    def legal_counts(self, grid: tuple[int, int]) -> Sequence[int]:
        """Any number up to that of the patches."""
        return range(1, grid[0] * grid[1] + 1)

    def check_count(self, count: int) -> None:
        check_at_most(count, self.shape.num_patches, "patches")

    @property
    def cached_content(self) -> str:
        return f"patches, pruned to {', '.join(map(str, self.shape.counts))}"

    @property
    def cached_shape(self) -> tuple[int, int]:
        return sum(self.shape.counts), self.shape.vision_width

    def to_cache(self, features: VisionFeatures) -> torch.Tensor:
        """The finished tokens of every count, one count after the other."""
        return torch.cat([self(features, None, count) for count in self.shape.counts], dim=1)

    def from_cache(self, cached: torch.Tensor) -> VisionFeatures:
        return VisionFeatures(self.shape.grid, cached)

    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        """See :class:`Compressor`; features without attention are those of :meth:`from_cache`, for its counts only."""
        assert features.patches is not None
        if features.attention is None or features.keys is None:
            return self._finished(features.patches, num_visual_tokens)
        self.check_count(num_visual_tokens)
        num_contextual = round(num_visual_tokens * registry.CONTEXTUAL_FRACTION)
        best = features.attention.topk(num_visual_tokens - num_contextual, dim=1).indices
        dominant = torch.zeros_like(features.attention, dtype=torch.bool).scatter_(1, best, True)
        # Indices, not masks: a plan counts this on tensors without numbers, where a mask selects an unknown number.
        order, num_others = dominant.byte().argsort(dim=1, stable=True), dominant.shape[1] - best.shape[1]
        other, chosen = order[:, :num_others], order[:, num_others:]
        kept = _select(features.patches, chosen)
        if num_contextual == 0:
            return kept
        rest, keys = _select(features.patches, other), _select(features.keys, other)
        return torch.cat([kept, _merge(rest, keys, num_contextual)], dim=1)

    def _finished(self, tokens: torch.Tensor, count: int) -> torch.Tensor:
        if count not in self.shape.counts:
            counts = ", ".join(map(str, self.shape.counts))
            raise UserError(
                f"These features were pruned to {counts} visual tokens, not to {count}; choose one of them."
            )
        start = sum(self.shape.counts[: self.shape.counts.index(count)])
        return tokens[:, start : start + count]


def _select(rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The chosen rows of each image: [B, P, C] by their indices [B, n] -> [B, n, C]."""
    return rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[2]))


def _merge(patches: torch.Tensor, keys: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` evenly spaced patches, each plus the mean of those nearest to it by key: [B, R, D] -> [B, count, D]."""
    remaining = patches.shape[1]
    targets = range(remaining)[: count * (remaining // count) : remaining // count]
    others = torch.tensor([i for i in range(remaining) if i not in targets], dtype=torch.long, device=patches.device)
    target = torch.tensor(targets, device=patches.device)
    keys = F.normalize(keys, dim=-1)
    nearest = (keys[:, others] @ keys[:, target].mT).argmax(dim=-1)
    joined = F.one_hot(nearest, count).to(patches.dtype)
    means = joined.mT @ patches[:, others] / joined.sum(dim=1).clamp(min=1).unsqueeze(-1)
    return patches[:, target] + means
