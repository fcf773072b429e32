"""Visual tokens for blocks of image places that may differ in number: one pass for each number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from vlmkit.models.compressors.base import Compressor


def compress_blocks(
    compressor: Compressor, cached: torch.Tensor, query: torch.Tensor | None, counts: Sequence[int]
) -> torch.Tensor:
    """The tokens [sum of ``counts``, vision_width] of M blocks, one block after another.

    ``cached`` [M, ...] is each block's image as the compressor keeps it, ``query`` [M, text_width] its question vector
    and ``counts`` (M integers) its number of tokens.
    """
    different = sorted({*counts})
    if len(different) == 1:
        return compressor(compressor.from_cache(cached), query, different[0]).flatten(0, 1)
    formed: dict[int, Iterator[torch.Tensor]] = {}
    for count in different:
        members = [block for block, wanted in enumerate(counts) if wanted == count]
        chosen = torch.tensor(members, device=cached.device)
        of_members = None if query is None else query[chosen]
        formed[count] = iter(compressor(compressor.from_cache(cached[chosen]), of_members, count))
    return torch.cat([next(formed[count]) for count in counts])
