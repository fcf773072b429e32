"""Tar shards on local disks: one index for a list of them, made once and mapped into memory, and reads in place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from vlmkit.data.disk_cache import cache_folder, read_or_build
from vlmkit.data.order import SampleOrder, shuffled
from vlmkit.data.samples import BadSample
from vlmkit.data.shards.shard_table import ROW, combine_digests, digest_shard, is_pair, tabulate_shard
from vlmkit.errors import UserError

Progress = Callable[[int, int], None]
"""Hears (shards done, of all) of a long job."""

_INDEX_VERSION = 2
_ROWS, _HEADER = "rows.bin", "header.json"


class LocalShards:
    """Shards that lie on this machine. Cheap to copy to other processes, which map the index again.

    The index is kept in the cache directory, keyed by the shards' paths, sizes and times of change. ``progress`` hears
    how far it is when it has to be made. Raises UserError for shards that are missing or damaged (unless
    ``allow_truncated``: then their whole samples are used).
    """

    def __init__(self, paths: Sequence[Path], allow_truncated: bool = False, progress: Progress | None = None) -> None:
        described = "\n".join(_describe(path) for path in paths)
        key = sha256(f"{_INDEX_VERSION} {allow_truncated}\n{described}".encode()).hexdigest()
        self.paths = tuple(path.resolve() for path in paths)
        read_or_build(
            cache_folder("shard-index") / key,
            self._map,
            partial(_build, paths=self.paths, allow_truncated=allow_truncated, progress=progress),
        )

    def _map(self, directory: Path) -> None:
        header = json.loads((directory / _HEADER).read_text(encoding="utf-8"))
        self.directory = directory
        self.fingerprint: str = header["fingerprint"]
        self.shard_sizes = np.array(header["samples"], np.int64)
        self.num_pairs: int = header["pairs"]
        self._ends = np.cumsum(self.shard_sizes)
        self._rows = _map_rows(directory / _ROWS, int(self.shard_sizes.sum()))

    def name(self, shard: int) -> str:
        """What users know the shard by."""
        return self.paths[shard].name

    def rows(self, shard: int) -> np.ndarray:
        """The shard's table, of type ROW."""
        end = self._ends[shard]
        return self._rows[end - self.shard_sizes[shard] : end]

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes of the shard from ``offset``. Raises BadSample if they are not there any more."""
        path = self.paths[shard]
        try:
            data = os.pread(_open(path, self.directory).descriptor, size, offset)
        except OSError as error:
            raise BadSample(f"{path} cannot be read: {error}") from error
        if len(data) != size:
            raise BadSample(f"{path} has become shorter since it was indexed")
        return data

    def order(self, seed: int) -> SampleOrder:
        """One permutation of all samples, up to a size; windows of whole shards above."""
        return shuffled(int(self.shard_sizes.sum()), seed, self.shard_sizes)

    def __getstate__(self) -> dict[str, object]:
        return {"paths": self.paths, "directory": self.directory}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._map(self.directory)


def _describe(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"There is no readable shard at {path} ({error.strerror}); check the path.") from error
    return f"{path.resolve()}\t{status.st_size}\t{status.st_mtime_ns}"


def _build(directory: Path, paths: Sequence[Path], allow_truncated: bool, progress: Progress | None) -> None:
    """Write the rows shard by shard, so that memory holds one shard's at a time."""
    samples, digests, pairs = list[int](), list[str](), 0
    with (directory / _ROWS).open("wb") as file:
        for done, path in enumerate(paths, 1):
            rows = tabulate_shard(path, str(path), allow_truncated)
            rows.tofile(file)
            samples.append(len(rows))
            pairs += int(is_pair(rows).sum())
            digests.append(digest_shard(str(path), rows))
            if progress is not None:
                progress(done, len(paths))
    header = {"samples": samples, "pairs": pairs, "fingerprint": combine_digests(digests)}
    (directory / _HEADER).write_text(json.dumps(header), encoding="utf-8")


def _map_rows(path: Path, count: int) -> np.ndarray:
    if path.stat().st_size != count * ROW.itemsize:
        raise ValueError(f"{path} does not hold {count} rows")
    if not count:
        return np.zeros(0, ROW)
    return np.asarray(np.memmap(path, ROW, mode="r"))  # a plain view: a map's own subclass is slow to index


class _OpenFile:
    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=64)
def _open(path: Path, index: Path) -> _OpenFile:
    """The open file; the index stands for its state, because a path may come to name another file."""
    return _OpenFile(path)
