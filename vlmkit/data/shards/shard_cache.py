"""A bounded folder of fetched shards, shared by all processes that read the same remote data."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from vlmkit.data.disk_cache import locked
from vlmkit.data.samples import BadSample
from vlmkit.errors import UserError

FETCHES_AT_ONCE = 4
"""Shards that a process fetches ahead at the same time."""

_LOCKS = 64
_ROOM_LOCK = "room.lock"
_TOUCH_SECONDS = 10
_WAIT_SECONDS = 0.2
_ATTEMPTS = 5
_log = logging.getLogger(__name__)

T = TypeVar("T")
Fetch = Callable[[int, Path], np.ndarray]
"""(number of a shard, where to write its bytes) -> its table, of type ROW."""


class ShardCache:
    """Shards by number, fetched when first asked for; the least recently read make room for new ones.

    A shard appears whole or not at all, whatever becomes of the process that fetches it, and of several processes that
    want it one fetches and the others wait. An entry of another length than ``sizes`` says is fetched again.

    Args:
        directory: the folder, made if need be; one for each set of remote shards.
        sizes: bytes of each shard.
        limit: bytes that shards take up at most, those on their way included.
        fetch: writes one shard to a path and returns its table.

    Raises UserError if the folder cannot be made.
    """

    def __init__(self, directory: Path, sizes: np.ndarray, limit: int, fetch: Fetch) -> None:
        self._directory = directory
        self._sizes = sizes
        self._limit = limit
        self._fetch = fetch
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Remote shards are fetched to {directory}, which cannot be made ({error.strerror}); "
                "set VLMKIT_CACHE to a folder that can be written."
            ) from error
        self._ahead = _Background(self._obtain)

    def rows(self, shard: int) -> np.ndarray:
        """The shard's table, of type ROW."""
        return _remembered_rows(self, shard)

    def load_rows(self, shard: int) -> np.ndarray:
        """The same, from the disk."""
        return self._retry(shard, lambda: self._load_rows(shard))

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes of the shard from ``offset``. Raises BadSample if it holds less."""
        data = self._retry(shard, lambda: self._read(shard, offset, size))
        if len(data) != size:
            raise BadSample(f"shard {shard} ends before byte {offset + size}")
        return data

    def fetch_ahead(self, shards: Iterable[int]) -> None:
        """Fetch these shards in the background, in this order, instead of what was asked for before and not begun."""
        self._ahead.want(shards)

    def _retry(self, shard: int, read: Callable[[], T]) -> T:
        """``read()``, with the shard at hand; again if another process removes it in between."""
        for _ in range(_ATTEMPTS):
            self._obtain(shard)
            try:
                return read()
            except FileNotFoundError:
                continue
        raise UserError(
            f"Fetched shards are removed from {self._directory} before they can be read; "
            "give the source more room with ?cache_gb=."
        )

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        # A descriptor kept open would keep a removed shard on the disk, so the file is opened for every read.
        path = self._path(shard)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if time.time() - os.fstat(descriptor).st_mtime > _TOUCH_SECONDS:
                os.utime(path)
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def _obtain(self, shard: int) -> None:
        if self._present(shard):
            return
        with locked(self._lock_of(shard)):
            if not self._present(shard):
                self._fetch_into_place(shard)

    def _present(self, shard: int) -> bool:
        try:
            return self._path(shard).stat().st_size == self._sizes[shard]
        except FileNotFoundError:
            return False

    def _fetch_into_place(self, shard: int) -> None:
        part = self._reserve(shard)
        try:
            rows = self._fetch(shard, part)
            os.utime(part)
            unfinished = part.with_suffix(".rows")
            with unfinished.open("wb") as file:
                np.save(file, rows)
            unfinished.replace(self._path(shard).with_suffix(".npy"))
            part.replace(self._path(shard))
        finally:
            part.unlink(missing_ok=True)

    def _reserve(self, shard: int) -> Path:
        """The path to fetch to, once there is room. Its name says how many bytes are spoken for."""
        size = int(self._sizes[shard])
        part = self._directory / f"{shard:06d}.{size}.part"
        while True:
            with locked(self._directory / _ROOM_LOCK):
                part.unlink(missing_ok=True)
                if self._make_room(size, shard):
                    part.touch()
                    return part
            time.sleep(_WAIT_SECONDS)  # until others have placed what they fetch, which can then be removed

    def _make_room(self, size: int, wanted: int) -> bool:
        """Remove the least recently read shards until ``size`` bytes fit; False if shards on their way leave no room.

        Also removes what a process that died has left of a fetch: nobody holds its lock, or the caller for ``wanted``.
        """
        reserved, placed = 0, []
        for entry in self._directory.iterdir():
            if entry.suffix in (".part", ".rows"):
                shard, bytes_reserved, _ = entry.name.split(".")
                lock = self._lock_of(int(shard))
                with locked(lock, wait=False) as free:
                    if free or lock == self._lock_of(wanted):
                        entry.unlink(missing_ok=True)
                    elif entry.suffix == ".part":
                        reserved += int(bytes_reserved)
            elif entry.suffix == ".tar":
                status = entry.stat()
                placed.append((status.st_mtime_ns, status.st_size, entry))
        taken = reserved + sum(entry_size for _, entry_size, _ in placed)
        for _, entry_size, path in sorted(placed):
            if taken + size <= self._limit:
                break
            path.unlink()
            path.with_suffix(".npy").unlink(missing_ok=True)
            taken -= entry_size
        return taken + size <= self._limit

    def _path(self, shard: int) -> Path:
        return self._directory / f"{shard:06d}.tar"

    def _lock_of(self, shard: int) -> Path:
        return self._directory / f"fetch-{shard % _LOCKS}.lock"

    def _load_rows(self, shard: int) -> np.ndarray:
        path = self._path(shard).with_suffix(".npy")
        try:
            return np.load(path)
        except (ValueError, EOFError):
            # The table is damaged: away with the shard, so that both are fetched again.
            with locked(self._directory / _ROOM_LOCK):
                self._path(shard).unlink(missing_ok=True)
            raise FileNotFoundError(path) from None


@lru_cache(maxsize=256)
def _remembered_rows(cache: ShardCache, shard: int) -> np.ndarray:
    return cache.load_rows(shard)


class _Background:
    """Calls a function for numbers in the background, the latest wishes first. Starts afresh in another process."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call
        self._wanted: deque[int] = deque()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Lock()

    def want(self, numbers: Iterable[int]) -> None:
        with self._changed:
            self._wanted = deque(numbers)
            for _ in range(min(FETCHES_AT_ONCE, len(self._wanted)) - len(self._threads)):
                thread = threading.Thread(target=self._work, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._wanted:
                    self._threads.remove(threading.current_thread())
                    return
                number = self._wanted.popleft()
            try:
                self._call(number)
            except UserError as error:
                # Whoever needs the shard tries again and reports it, if it fails then too.
                _log.warning("%s", error)

    def __reduce__(self) -> tuple[type[_Background], tuple[Callable[[int], None]]]:
        return _Background, (self._call,)
