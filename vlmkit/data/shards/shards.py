"""Captioned images in WebDataset tar shards: KEY.jpg beside KEY.txt or KEY.json, read in place."""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path
from typing import Protocol

import numpy as np

from vlmkit.data.cells import check_captions
from vlmkit.data.order import SampleOrder
from vlmkit.data.patterns import find_paths
from vlmkit.data.remote import is_remote
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.data.shards.remote_shards import DEFAULT_CACHE_GB, RemoteShards
from vlmkit.data.shards.shard_index import LocalShards, Progress
from vlmkit.data.shards.shard_table import CAPTION_EXTENSIONS, IMAGE_EXTENSIONS
from vlmkit.errors import UserError

Place = tuple[int, int]
"""(offset, size) in bytes; a size of -1 where there is nothing."""


class Shards(Protocol):
    """Where the bytes of a list of shards come from."""

    shard_sizes: np.ndarray
    """Samples of each shard, int64."""
    num_pairs: int
    """Samples that have both an image and a caption."""
    fingerprint: str

    def name(self, shard: int) -> str: ...

    def rows(self, shard: int) -> np.ndarray: ...

    def read(self, shard: int, offset: int, size: int) -> bytes: ...

    def order(self, seed: int) -> SampleOrder: ...


class ShardCaptions:
    """A source of caption samples over tar shards: one sample for each run of members that share a key.

    ``pattern`` is a tar, a directory of tars or a glob, as a path or as a URL that fsspec understands, with or without
    braces (``{0000..0120}``, ``{a,b}``). The caption is the text of KEY.txt, else ``caption`` (a text or a list of
    texts) of KEY.json. A sample without image or caption is a BadSample.

    Shards behind a URL are fetched into a cache of ``cache_gb`` gigabytes, and what they hold is read from a
    ``manifest`` (see :class:`~vlmkit.data.shards.remote_shards.RemoteShards`).

    Raises UserError if there is nothing to read or a shard is damaged (with ``allow_truncated`` its whole pairs are
    used). ``progress`` hears how many shards are indexed.
    """

    def __init__(
        self,
        pattern: str,
        allow_truncated: bool = False,
        cache_gb: float | None = None,
        manifest: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not is_remote(pattern) and (cache_gb, manifest) != (None, None):
            raise UserError(
                f"cache_gb and manifest are for shards behind a URL, and {pattern} is local; leave them out."
            )
        found = find_paths(pattern, ".tar")
        if not found:
            raise UserError(
                f"No shards found at {pattern}; give a .tar, a directory of them, or a pattern that matches."
            )
        self._shards: Shards
        if is_remote(pattern):
            room = DEFAULT_CACHE_GB if cache_gb is None else cache_gb
            self._shards = RemoteShards(found, allow_truncated, room, manifest, progress)
        else:
            self._shards = LocalShards([Path(path) for path in found], allow_truncated, progress)
        self._ends: list[int] = np.cumsum(self._shards.shard_sizes).tolist()
        self.fingerprint = self._shards.fingerprint
        if not self._shards.num_pairs:
            raise UserError(
                f"The shards at {pattern} hold no pair of an image ({', '.join(IMAGE_EXTENSIONS)}) and a caption "
                f"({', '.join(CAPTION_EXTENSIONS)}) with the same key; check that they are WebDataset shards."
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> CaptionSample:
        shard, is_json, image, caption = self._find(index)
        return CaptionSample(self._read(shard, image, "image"), self._captions(shard, is_json, caption))

    def captions_only(self, index: int) -> tuple[str, ...]:
        """The captions of a sample, whose image is not read."""
        shard, is_json, _, caption = self._find(index)
        return self._captions(shard, is_json, caption)

    def order(self, seed: int) -> SampleOrder:
        """The order of training: windows of whole shards where these have to be fetched."""
        return self._shards.order(seed)

    def _find(self, index: int) -> tuple[int, bool, Place, Place]:
        """Shard of a sample, whether its captions are JSON, and where in the shard its image and its captions are."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        row = self._shards.rows(shard)[index - self._ends[shard]]  # counted from the last row of the shard
        is_json, image_offset, image_size, caption_offset, caption_size = row.item()
        return shard, is_json, (image_offset, image_size), (caption_offset, caption_size)

    def _captions(self, shard: int, is_json: bool, place: Place) -> tuple[str, ...]:
        data = self._read(shard, place, "caption")
        try:
            return check_captions(json.loads(data)["caption"] if is_json else data.decode("utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise BadSample(f"the caption cannot be read ({type(error).__name__}: {error})") from error

    def _read(self, shard: int, place: Place, part: str) -> bytes:
        offset, size = place
        if size < 0:
            raise BadSample(f"a sample of {self._shards.name(shard)} has no {part}")
        return self._shards.read(shard, offset, size)
