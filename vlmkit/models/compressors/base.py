"""The contract of a compressor, and how a number of tokens becomes square cells of the patch grid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from vlmkit.errors import UserError
from vlmkit.models.features import VisionFeatures


@dataclass(frozen=True)
class CompressorShape:
    """What a compressor is built for: its tower, its language model and the visual tokens asked for."""

    vision_width: int
    vision_layers: int
    patch_size: int
    """Side of a patch in pixels."""
    grid: tuple[int, int]
    """(height, width) of the patch grid in patches."""
    text_width: int
    """Width of the question vector: the hidden size of the language model."""
    counts: tuple[int, ...]
    """The visual tokens asked for; several where one module serves them all."""

    @property
    def num_visual_tokens(self) -> int:
        """The most visual tokens asked for."""
        return max(self.counts)


class Compressor(nn.Module, ABC):
    """Turns features of the vision tower into ``num_visual_tokens`` vectors of the tower's width.

    Raises UserError on construction if the tokens do not tile the grid in square cells, or if several counts are asked
    of a compressor that is not elastic.
    """

    requires: ClassVar[frozenset[str]]
    """Fields of VisionFeatures that ``forward`` reads."""
    level_fractions: ClassVar[tuple[float, ...]] = ()
    """Depths of the blocks whose features are read as levels, as fractions of the tower's number of blocks."""
    conditioned: ClassVar[bool]
    """Whether ``forward`` needs the question vector, so that every question has visual tokens of its own."""
    elastic: ClassVar[bool] = False
    """Whether the same weights serve several token counts."""
    placement: ClassVar[Literal["image", "before_projector", "after_projector"]] = "before_projector"

    def __init__(self, shape: CompressorShape) -> None:
        super().__init__()
        for count in shape.counts:
            cell_side(shape.grid, count, shape.patch_size)
        if len(shape.counts) > 1 and not self.elastic:
            raise UserError(
                f"{type(self).__name__} has weights for one token count and cannot be trained for "
                f"{', '.join(map(str, shape.counts))} at once; give one count, or choose avgpool."
            )
        self.shape = shape
        self.levels = level_blocks(self.level_fractions, shape.vision_layers)

    def legal_counts(self, grid: tuple[int, int]) -> list[int]:
        """Token counts that tile a patch grid, ascending."""
        return legal_counts(grid)

    def precompute(self, features: VisionFeatures) -> VisionFeatures:
        """The part that depends on the image alone and has no parameters: what a feature cache stores.

        ``forward`` gives the same tokens for the result as for ``features``. By default nothing is computed ahead.
        """
        return features

    @abstractmethod
    def forward(self, features: VisionFeatures, query: torch.Tensor | None, num_visual_tokens: int) -> torch.Tensor:
        """Visual tokens [B, num_visual_tokens, vision_width].

        ``query`` [B, text_width] is the question vector of each image; None for a compressor that is not conditioned.
        Tokens are ordered row by row over the grid of cells. Raises UserError for a count that does not tile the grid.
        """


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


def level_blocks(fractions: tuple[float, ...], num_layers: int) -> tuple[int, ...]:
    """Indices (from 0) of the blocks at these fractions of the depth, ascending.

    The last block is never among them (its output feeds no patch feature in CLIP-style towers, see LLaVA's use of the
    penultimate block); in a shallow tower, fractions that fall on one block count once.
    """
    after = {min(max(1, round(fraction * num_layers)), max(1, num_layers - 1)) for fraction in fractions}
    return tuple(sorted(count - 1 for count in after))


def cells(tokens: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """[B, h * w, C] cut into square cells: [B, (h / side)(w / side), side * side, C], both row by row."""
    height, width = grid
    batch, _, channels = tokens.shape
    blocks = tokens.view(batch, height // side, side, width // side, side, channels).transpose(2, 3)
    return blocks.reshape(batch, -1, side * side, channels)
