"""Captioned images in WebDataset tar shards: KEY.jpg beside KEY.txt or KEY.json, read in place."""

from __future__ import annotations

import glob
import itertools
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np

from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.data.tar_index import Member, Shard
from vlmkit.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSIONS = ("txt", "json")

_BRACES = re.compile(r"\{([^{}]*)\}")
_ABSENT = Member("", 0, -1)
_ROW = np.dtype(
    [
        ("shard", np.int32),
        ("is_json", np.bool_),
        ("image_offset", np.int64),
        ("image_size", np.int64),
        ("caption_offset", np.int64),
        ("caption_size", np.int64),
    ]
)


class ShardCaptions:
    """A source of caption samples over tar shards: one sample for each run of members that share a key.

    ``pattern`` is a tar, a directory of tars, a glob, or either with braces (``{0000..0120}``, ``{a,b}``). The caption
    is the text of KEY.txt, else ``caption`` (a text or a list of texts) of KEY.json. A sample without image or
    readable caption raises BadSample. Raises UserError if there are no shards or no pairs, or if a shard is cut off
    (with ``allow_truncated`` its whole pairs are used).
    """

    def __init__(self, pattern: str, allow_truncated: bool = False) -> None:
        self._shards = [Shard.at(path) for path in find_shards(pattern)]
        digest = sha256()
        tables = []
        for number, shard in enumerate(self._shards):
            index = shard.index()
            table = np.array([_row(number, parts) for parts in _groups(index.members)], _ROW)
            whole = table[_is_pair(table)]
            if not index.intact and not allow_truncated:
                raise UserError(
                    f"{shard.path} is cut off or damaged after {len(whole)} whole samples; "
                    "fetch it again, or add ?allow_truncated=1 to the source to use those."
                )
            tables.append(table if index.intact else whole)
            digest.update(json.dumps([shard.path.name, index.members]).encode())
        self._rows = np.concatenate(tables)
        if not _is_pair(self._rows).any():
            raise UserError(
                f"The shards at {pattern} hold no pair of an image ({', '.join(IMAGE_EXTENSIONS)}) and a caption "
                f"({', '.join(CAPTION_EXTENSIONS)}) with the same key; check that they are WebDataset shards."
            )
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> CaptionSample:
        row = self._rows[index]
        shard = self._shards[row["shard"]]
        if not _is_pair(row):
            missing = "image" if row["image_size"] < 0 else "caption"
            raise BadSample(f"sample {index} ({shard.path.name}) has no {missing}")
        captions = _parse_captions(shard.read(int(row["caption_offset"]), int(row["caption_size"])), row["is_json"])
        return CaptionSample(shard.read(int(row["image_offset"]), int(row["image_size"])), captions)


def find_shards(pattern: str) -> list[Path]:
    """The tars that ``pattern`` stands for, in order. Raises UserError if there are none."""
    paths: list[Path] = []
    for expanded in _expand_braces(pattern):
        path = Path(expanded).expanduser()
        if path.is_dir():
            paths += sorted(path.glob("*.tar"))
        elif glob.has_magic(expanded):
            paths += sorted(map(Path, glob.glob(str(path))))
        else:
            paths.append(path)
    if not paths:
        raise UserError(f"No shards found at {pattern}; give a .tar, a directory of them, or a pattern that matches.")
    return paths


def _expand_braces(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        choices = [str(number).zfill(len(span[1])) for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _groups(members: tuple[Member, ...]) -> Iterator[dict[str, Member]]:
    """Members by lower-case extension, for each run of members with one key: the path up to the name's first dot."""

    def key(member: Member) -> str:
        folder, slash, name = member.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    for _, group in itertools.groupby(members, key):
        yield {member.name.rpartition("/")[2].partition(".")[2].lower(): member for member in group}


def _row(shard: int, parts: dict[str, Member]) -> tuple[int, bool, int, int, int, int]:
    image = next((parts[extension] for extension in IMAGE_EXTENSIONS if extension in parts), _ABSENT)
    extension = next((extension for extension in CAPTION_EXTENSIONS if extension in parts), "")
    caption = parts.get(extension, _ABSENT)
    return shard, extension == "json", image.offset, image.size, caption.offset, caption.size


def _is_pair(rows: np.ndarray) -> np.ndarray:
    return (rows["image_size"] >= 0) & (rows["caption_size"] >= 0)


def _parse_captions(data: bytes, is_json: bool) -> tuple[str, ...]:
    try:
        content = json.loads(data)["caption"] if is_json else data.decode("utf-8")
    except (ValueError, KeyError, TypeError) as error:
        raise BadSample(f"the caption cannot be read ({type(error).__name__}: {error})") from error
    captions = tuple(content) if isinstance(content, list) else (content,)
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise BadSample("the caption is empty or not a text")
    return captions
