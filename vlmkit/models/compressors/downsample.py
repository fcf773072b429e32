"""Down-sampling: a smaller image, all of whose patches are visual tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmkit.errors import UserError
from vlmkit.models.compressors.every_patch import EveryPatch


class Downsample(EveryPatch):
    """A tower built for an image of exactly so many patches, at :func:`shrunken_image_size`, and nothing after it.

    The control that beats many methods (arXiv 2510.07143), at a tower cost that falls with the tokens. The tower's
    position embeddings are interpolated to the smaller grid.
    """

    placement = "image"


def shrunken_image_size(counts: Sequence[int], full_grid: tuple[int, int], patch_size: int) -> int:
    """The side, in pixels, of the square image whose number of patches is the one count.

    Raises UserError if there is none, if it is larger than the full image of ``full_grid`` patches, or for several
    counts, which are images of several sizes.
    """
    if len(counts) > 1:
        raise UserError(
            f"downsample builds the tower for one image size and cannot give {', '.join(map(str, counts))} tokens at "
            "once; give one count, or choose avgpool."
        )
    (count,), largest = counts, min(full_grid)
    side = math.isqrt(count)
    if side * side != count or not 0 < side <= largest:
        raise UserError(
            f"No square image of at most {largest} x {largest} patches has {count} of them; the legal counts of "
            f"downsample are the squares {', '.join(str(n * n) for n in range(1, largest + 1))}: choose one."
        )
    return side * patch_size
