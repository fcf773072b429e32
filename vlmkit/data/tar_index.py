"""Random access into tar shards: headers are scanned once, members are then read in place.

The index of a shard is kept in the user's cache directory (``$VLMKIT_CACHE``, else ``~/.cache/vlmkit``), keyed by the
shard's path, size and time of change. On a machine where that directory cannot be written, shards are scanned anew.
"""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from vlmkit.data.samples import BadSample
from vlmkit.errors import UserError

_INDEX_VERSION = 1


class Member(NamedTuple):
    """A file inside a tar: its data are ``size`` bytes from ``offset``."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarIndex:
    """The regular files of a plain tar, in order, that lie in it as a whole.

    ``intact`` is False if the tar is cut off or damaged: it does not end with its end mark.
    """

    members: tuple[Member, ...]
    intact: bool


@dataclass(frozen=True)
class Shard:
    """A tar on disk. Cheap to copy to other processes: files are opened on first use in each."""

    path: Path
    size: int
    changed_ns: int

    @classmethod
    def at(cls, path: Path) -> Shard:
        """The shard that lies at ``path`` now."""
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"There is no readable shard at {path} ({error.strerror}); check the path.") from error
        return cls(path.resolve(), status.st_size, status.st_mtime_ns)

    def index(self) -> TarIndex:
        """The members, from the cache or by scanning. Raises UserError if this is no uncompressed tar."""
        cached = _cache_directory() / "tar-index" / f"{self._digest()}.json"
        try:
            stored = json.loads(cached.read_text(encoding="utf-8"))
            return TarIndex(tuple(Member(*member) for member in stored["members"]), stored["intact"])
        except (OSError, ValueError, KeyError, TypeError):
            # Absent, or written by something else: either way the shard itself is the truth.
            index = _scan(self.path)
        _write_atomically(cached, json.dumps({"intact": index.intact, "members": index.members}))
        return index

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``. Raises BadSample if they are not there any more."""
        try:
            file = _open(self)
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise BadSample(f"{self.path} cannot be read: {error}") from error
        if len(data) != size:
            raise BadSample(f"{self.path} has become shorter since it was indexed")
        return data

    def _digest(self) -> str:
        return sha256(f"{_INDEX_VERSION}\n{self.path}\n{self.size}\n{self.changed_ns}".encode()).hexdigest()


class _OpenFile:
    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=64)
def _open(shard: Shard) -> _OpenFile:
    return _OpenFile(shard.path)


def _scan(path: Path) -> TarIndex:
    members: list[Member] = []
    with path.open("rb") as file, _open_tar(path) as tar:
        size = os.fstat(file.fileno()).st_size
        try:
            for entry in tar:
                if entry.isreg() and entry.offset_data + entry.size <= size:
                    members.append(Member(entry.name, entry.offset_data, entry.size))
        except tarfile.ReadError:
            return TarIndex(tuple(members), intact=False)
        # tarfile stops without a word at a header that it cannot read; only the end mark tells a whole tar.
        file.seek(tar.offset)
        return TarIndex(tuple(members), intact=file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE))


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except tarfile.ReadError as error:
        raise UserError(f"{path} is not an uncompressed tar ({error}); shards must be plain .tar files.") from error


def _cache_directory() -> Path:
    return Path(os.environ.get("VLMKIT_CACHE") or Path.home() / ".cache" / "vlmkit")


def _write_atomically(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError:
        # A cache that cannot be written costs time, nothing else.
        return
