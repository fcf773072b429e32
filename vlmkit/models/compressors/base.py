"""The contract of a compressor, and how a number of tokens becomes square cells of the patch grid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.models.features import VisionFeatures

MAX_HEADS = 8


@dataclass(frozen=True)
class CompressorShape:
    """What a compressor is built for: its tower, its language model and the visual tokens asked for."""

    vision_width: int
    vision_layers: int
    patch_size: int
    """Side of a patch in pixels."""
    grid: tuple[int, int]
    """(height, width) of the patch grid in patches."""
    text_width: int | None
    """Width of the question vector: the hidden size of the language model. None: no question is given."""
    counts: tuple[int, ...]
    """The visual tokens asked for; several where one module serves them all."""

    @property
    def num_visual_tokens(self) -> int:
        """The most visual tokens asked for."""
        return max(self.counts)

    @property
    def num_patches(self) -> int:
        """Patches of the grid."""
        return self.grid[0] * self.grid[1]


class Compressor(nn.Module, ABC):
    """Turns features of the vision tower into ``num_visual_tokens`` vectors of the tower's width.

    Raises UserError on construction for a count that is not legal on the grid, or if several counts are asked of a
    compressor that is not elastic.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"patches"})
    """Fields of VisionFeatures that are read."""
    level_fractions: ClassVar[tuple[float, ...]] = ()
    """Depths of the blocks whose features are read as levels, as fractions of the tower's number of blocks."""
    reads_question: ClassVar[bool] = False
    """Whether a question vector, where there is one, changes the visual tokens."""
    elastic: ClassVar[bool] = False
    """Whether the same weights serve several token counts."""
    placement: ClassVar[Literal["image", "before_projector", "after_projector"]] = "before_projector"
    """What is compressed: the features, or the image that the tower is built for (see ``downsample``)."""

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__()
        self.shape = shape
        self.levels = registry.level_blocks(self.level_fractions, shape.vision_layers)
        for count in shape.counts:
            self.check_count(count)
        if len(shape.counts) > 1 and not self.elastic:
            elastic = ", ".join(facts.name for facts in registry.COMPRESSORS.values() if facts.elastic)
            raise UserError(
                f"{type(self).__name__} has weights for one token count and cannot be trained for "
                f"{', '.join(map(str, shape.counts))} at once; give one count, or choose one of {elastic}."
            )

    @property
    def conditioned(self) -> bool:
        """Whether ``forward`` needs the question vector, so that every question has visual tokens of its own."""
        return self.reads_question and self.shape.text_width is not None

    def legal_counts(self, grid: tuple[int, int]) -> Sequence[int]:
        """Token counts that this module can make of a patch grid, ascending."""
        return legal_counts(grid)

    def check_count(self, count: int) -> None:
        """Raise UserError if ``count`` is not legal on the grid that the module is built for, saying which are."""
        cell_side(self.shape.grid, count, self.shape.patch_size)

    @property
    def cached_content(self) -> str:
        """What :meth:`to_cache` keeps, in words: equal words of equal towers, equal content."""
        blocks = f"levels {', '.join(map(str, self.levels))}" if self.levels else ""
        return " and ".join(filter(None, ["patches" if self._keeps_patches else "", blocks]))

    @property
    def cached_shape(self) -> tuple[int, int]:
        """(rows, values a row) that :meth:`to_cache` keeps of one image."""
        return self.shape.num_patches, (self._keeps_patches + len(self.levels)) * self.shape.vision_width

    def to_cache(self, features: VisionFeatures) -> torch.Tensor:
        """What may be computed once for an image, ahead of every parameter: [B, rows, values a row].

        ``forward`` gives the same tokens for ``from_cache`` of the result as for ``features``. Here: what is required,
        side by side; patches that are among the levels are kept once.
        """
        fields = [features.patches if self._keeps_patches else None, features.levels]
        return torch.cat([field for field in fields if field is not None], dim=-1)

    def from_cache(self, cached: torch.Tensor) -> VisionFeatures:
        """The features that :meth:`to_cache` was given, as far as ``forward`` reads them."""
        width = self.shape.vision_width
        levels = cached[..., self._keeps_patches * width :] if self.levels else None
        start = 0 if self._keeps_patches else self.levels.index(self._penultimate) * width
        return VisionFeatures(self.shape.grid, cached[..., start : start + width], levels)

    @property
    def _penultimate(self) -> int:
        return self.shape.vision_layers - 2

    @property
    def _keeps_patches(self) -> bool:
        return self._penultimate not in self.levels

    @abstractmethod
    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        """Visual tokens [B, num_visual_tokens, vision_width].

        ``query`` [B, text_width] is the question vector of each image; None for a module that is not conditioned.
        Tokens of cells are ordered row by row over the grid of cells. Raises UserError for a count that is not legal.
        """


class FixedCells(Compressor):
    """A compressor whose weights are those of one cell side, so that a patch grid has one token count at most."""

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__(shape)
        self.side = cell_side(shape.grid, shape.num_visual_tokens, shape.patch_size)

    def legal_counts(self, grid: tuple[int, int]) -> Sequence[int]:
        """The number of this module's cells that tile a patch grid, if they do."""
        height, width = grid
        return [] if height % self.side or width % self.side else [(height // self.side) * (width // self.side)]

    def check_built_for(self, grid: tuple[int, int], count: int) -> None:
        """Raise UserError if this module's cells do not cut the grid into ``count``."""
        if count not in self.legal_counts(grid):
            legal = ", ".join(map(str, self.legal_counts(grid))) or "none"
            raise UserError(
                f"This {type(self).__name__} was built for {self.shape.num_visual_tokens} visual tokens and cannot "
                f"give {count} (legal here: {legal}); train one for that count."
            )


def legal_counts(grid: tuple[int, int]) -> list[int]:
    """Numbers of square k x k cells that tile the grid, ascending: (h / k)(w / k) for every k that divides both."""
    height, width = grid
    divisors = [k for k in range(1, min(grid) + 1) if height % k == 0 and width % k == 0]
    return sorted((height // k) * (width // k) for k in divisors)


def cell_side(grid: tuple[int, int], num_visual_tokens: int, patch_size: int) -> int:
    """The side k, in patches, of the square cells that cut the grid into ``num_visual_tokens``.

    Raises UserError if there is none, listing the legal counts and the nearest square image that would fit.
    """
    counts = legal_counts(grid)
    if num_visual_tokens in counts:
        return math.isqrt(grid[0] * grid[1] // num_visual_tokens)
    side = math.isqrt(num_visual_tokens)
    if side * side == num_visual_tokens and side > 0:
        size = max(1, round(min(grid) / side)) * side * patch_size
        way_on = f"choose one of these, or an image size of {size} pixels for {num_visual_tokens}"
    else:
        way_on = f"choose one of these ({num_visual_tokens} is not a square and fits no square image)"
    raise UserError(
        f"{num_visual_tokens} visual tokens do not tile the {grid[0]} x {grid[1]} patch grid in square cells; "
        f"the legal counts are {', '.join(map(str, counts))}: {way_on}."
    )


def check_at_most(count: int, limit: int, what: str) -> None:
    """Raise UserError unless 1 <= ``count`` <= ``limit``, the number of ``what``."""
    if not 1 <= count <= limit:
        raise UserError(
            f"{count} visual tokens cannot be made of {limit} {what}; the legal counts are 1 to {limit}: choose one."
        )


def cells(tokens: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """[B, h * w, C] cut into square cells: [B, (h / side)(w / side), side * side, C], both row by row."""
    height, width = grid
    batch, _, channels = tokens.shape
    blocks = tokens.view(batch, height // side, side, width // side, side, channels).transpose(2, 3)
    return blocks.reshape(batch, -1, side * side, channels)


def num_heads(width: int) -> int:
    """Attention heads for a width: 8 as in the papers, or the largest smaller number that divides the width."""
    return next(heads for heads in range(MAX_HEADS, 0, -1) if width % heads == 0)


def truncated_normal(module: nn.Module) -> None:
    """Initial weights of TokenPacker's code, for ``Module.apply``: truncated normal of deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
