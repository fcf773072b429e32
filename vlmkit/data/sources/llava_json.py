"""Conversations in JSON files, in LLaVA's form: records of human and gpt turns, about one image, several or none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.data.samples import BadSample, ConversationSample, Turn
from vlmkit.data.sources.messages import check_places, read_messages
from vlmkit.errors import UserError

_LINES = (".jsonl", ".ndjson")
_PROBED_IMAGES = 64


class LlavaConversations:
    """A source of conversations from one file: a JSON list of records, or ``lines`` of one record each (the default
    goes by the name: ``.jsonl``).

    A record has ``conversations`` ([{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]) or
    ``messages`` by role (``messages.read_messages``). It may have ``id``, ``image`` or ``images`` (a path or a list of
    paths, relative to ``images`` or else to the file's folder) and ``question_type``, the family of its turns (else
    ``all``). The texts either hold one ``<image>`` for each image, at its place, or none at all.

    The fingerprint covers the file and the sizes of some of its images. Raises UserError, naming the record, if the
    file is not of this form or turns do not alternate, and if none of the images looked at is there.
    """

    def __init__(self, file: str, images: str | None = None, lines: bool | None = None) -> None:
        path = Path(file).expanduser()
        content = _read(path)
        self._folder = Path(images).expanduser() if images else path.parent
        rows = [_check_record(path, number, record) for number, record in enumerate(_parse(path, content, lines))]
        # One buffer of bytes, because worker processes would copy millions of small objects, page by page.
        encoded = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
        self._ends = np.cumsum([len(row) for row in encoded])
        self._rows = b"".join(encoded)
        sizes = self._probe([name for _, names, _, _ in rows for name in names], path)
        self.fingerprint = sha256(content + json.dumps(sizes).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ConversationSample:
        start, end = (int(self._ends[index - 1]) if index else 0), int(self._ends[index])
        identity, names, family, turns = json.loads(self._rows[start:end])
        return ConversationSample(
            id=identity,
            images=tuple(partial(self._read_image, name) for name in names),
            turns=tuple(Turn(question, answer, family) for question, answer in turns),
        )

    def _read_image(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise BadSample(f"{self._folder / name} cannot be read ({error.strerror})") from error

    def _probe(self, names: list[str], path: Path) -> list[int]:
        """Sizes of evenly spaced images, -1 where one is missing."""
        probed = names[:: max(1, len(names) // _PROBED_IMAGES)]
        paths = [self._folder / name for name in probed]
        sizes = [image.stat().st_size if image.is_file() else -1 for image in paths]
        if sizes and max(sizes) < 0:
            raise UserError(
                f"The images of {path} are not there, e.g. {paths[0]}; name their folder with {path.name}?images=DIR."
            )
        return sizes


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a LLaVA-format JSON or JSONL file.") from error


def _parse(path: Path, content: bytes, lines: bool | None) -> list[Any]:
    """The records of a file."""
    try:
        if path.suffix.lower() in _LINES if lines is None else lines:
            records = [json.loads(line) for line in content.splitlines() if line.strip()]
        else:
            records = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); repair it or fetch it again.") from error
    if not isinstance(records, list):
        raise UserError(f"{path} holds one {type(records).__name__}; LLaVA's form is a list of records.")
    if not records:
        raise UserError(f"{path} holds no records; give a file with at least one conversation.")
    return records


def _check_record(path: Path, number: int, record: Any) -> tuple[str, list[str], str, list[tuple[str, str]]]:
    """(id, image names, family, [(question, answer)]) of a record."""
    if not isinstance(record, Mapping):
        raise UserError(f"Record {number} of {path} is not an object; LLaVA's form is a list of objects.")
    identity = str(record.get("id", number))
    where = f"record {number} (id {identity}) of {path}"
    image = record.get("image") or record.get("images") or []
    names = [image] if isinstance(image, str) else image
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"The image of {where} is neither a path nor a list of paths; correct the record.")
    turns = read_messages(record.get("conversations") or record.get("messages"), where)
    check_places(turns, len(names), where)
    family = str(record.get("question_type", "all"))
    return identity, names, family, [(turn.question, turn.answer) for turn in turns]
