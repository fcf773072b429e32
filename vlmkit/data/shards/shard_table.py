"""The samples of a tar shard as a table: where image and caption of each lie."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np

from vlmkit.data.shards.tar_index import Member, scan_tar
from vlmkit.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSIONS = ("txt", "json")

ROW = np.dtype(
    [
        ("is_json", np.bool_),
        ("image_offset", np.int64),
        ("image_size", np.int64),
        ("caption_offset", np.int64),
        ("caption_size", np.int64),
    ]
)
"""Where a sample lies in its shard; a part that is missing has size -1. The caption is a text or a JSON object."""

_ABSENT = Member("", 0, -1)


def tabulate_shard(path: Path, name: str, allow_truncated: bool) -> np.ndarray:
    """Rows of type ROW of the tar at ``path``: one for each run of members that share a key.

    Of a damaged tar, with ``allow_truncated``, the whole pairs are taken; without, it raises UserError, as for a file
    that is no tar. ``name`` is what users know the shard by.
    """
    index = scan_tar(path, name)
    rows = np.array([_row(parts) for parts in _groups(index.members)], ROW)
    if index.intact:
        return rows
    rows = rows[is_pair(rows)]
    if not allow_truncated:
        raise UserError(
            f"{name} is cut off or damaged after {len(rows)} whole samples; "
            "fetch it again, or add ?allow_truncated=1 to the source to use those."
        )
    return rows


def digest_shard(name: str, rows: np.ndarray) -> str:
    """Hex digest of a shard: of the last part of its name, and of the places and sizes of all images and captions."""
    return sha256(name.rpartition("/")[2].encode() + b"\0" + rows.tobytes()).hexdigest()


def combine_digests(digests: Iterable[str]) -> str:
    """Fingerprint of a list of shards."""
    return sha256("".join(digests).encode()).hexdigest()


def is_pair(rows: np.ndarray) -> np.ndarray:
    """Which of the rows have both an image and a caption."""
    return (rows["image_size"] >= 0) & (rows["caption_size"] >= 0)


def _groups(members: tuple[Member, ...]) -> Iterator[dict[str, Member]]:
    """Members by lower-case extension, for each run of members with one key: the path up to the name's first dot."""

    def key(member: Member) -> str:
        folder, slash, name = member.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    for _, group in itertools.groupby(members, key):
        yield {member.name.rpartition("/")[2].partition(".")[2].lower(): member for member in group}


def _row(parts: dict[str, Member]) -> tuple[bool, int, int, int, int]:
    image = next((parts[extension] for extension in IMAGE_EXTENSIONS if extension in parts), _ABSENT)
    extension = next((extension for extension in CAPTION_EXTENSIONS if extension in parts), "")
    caption = parts.get(extension, _ABSENT)
    return extension == "json", image.offset, image.size, caption.offset, caption.size
