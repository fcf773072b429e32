"""Where the files of a tar lie, so that they can be read in place: headers are read one after another, data skipped.

The formats are those of POSIX pax, GNU tar and plain ustar. Written out here because shards hold millions of small
files, for which the ``tarfile`` module takes several times as long.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vlmkit.errors import UserError

_BLOCK = 512
_END_MARK = bytes(_BLOCK)
_REGULAR, _PAX, _LONG_NAME = (b"0", b"\0", b"7"), b"x", b"L"
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, directories and pipes: a size in their headers means nothing."""
_OTHER_NOTES = (b"g", b"K")
"""Notes on other entries that say nothing on where a file lies: what all entries share, and the target of a link."""


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


def scan_tar(path: Path, shown: str | None = None) -> TarIndex:
    """The members of the tar at ``path`` (``shown`` in messages). Raises UserError if it is no uncompressed tar."""
    members: list[Member] = []
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        end = os.fstat(descriptor).st_size
        position, notes = 0, dict[bytes, bytes]()
        while (block := os.pread(descriptor, _BLOCK, position)) != _END_MARK:
            header = _parse(block)
            if header is None and position == 0:
                raise UserError(f"{shown or path} is not an uncompressed tar; shards must be plain .tar files.")
            data = position + _BLOCK
            if header is None or data + (size := int(notes.get(b"size", header.size))) > end:
                return TarIndex(tuple(members), intact=False)
            if header.kind == _PAX:
                notes = _pax_records(os.pread(descriptor, size, data))
            elif header.kind == _LONG_NAME:
                notes = {b"path": os.pread(descriptor, size, data).rstrip(b"\0")}
            elif header.kind not in _OTHER_NOTES:
                name = notes.get(b"path", header.name)
                if header.kind in _REGULAR and not name.endswith(b"/"):
                    members.append(Member(name.decode("utf-8", "surrogateescape"), data, size))
                notes = {}
            position = data + -(-size // _BLOCK) * _BLOCK
    return TarIndex(tuple(members), intact=True)


class _Header(NamedTuple):
    kind: bytes
    name: bytes
    size: int


def _parse(block: bytes) -> _Header | None:
    """The header of an entry; None if this is not a whole one with a matching checksum."""
    if len(block) < _BLOCK:
        return None
    try:
        # The checksum counts its own field as eight spaces.
        if sum(block) - sum(block[148:156]) + 256 != int(block[148:156].strip(b" \0"), 8):
            return None
        if block[124] & 0x80:  # a binary number, for what eleven octal digits cannot say
            size = int.from_bytes(block[125:136], "big")
        else:
            size = int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    kind = block[156:157]
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return _Header(kind, prefix + b"/" + name if prefix else name, 0 if kind in _WITHOUT_DATA else size)


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The path and size among records of the form ``LENGTH KEY=VALUE\\n``; what is malformed is left out."""
    records = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            break
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path" or (key == b"size" and value.isdigit()):
            records[key] = value
        data = data[int(length) :]
    return records
