"""Conversations in data sets of the Hugging Face hub, or in local folders that ``datasets`` can load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlmkit.data.cells import IMAGE_NAMES, find_column, read_image
from vlmkit.data.samples import BadSample, ConversationSample, Turn
from vlmkit.data.sources.hub import load_rows, undecoded
from vlmkit.data.sources.image_folder import ImageFolder
from vlmkit.data.sources.messages import (
    ANSWER_NAMES,
    CONVERSATION_NAMES,
    QUESTION_NAMES,
    read_answer,
    read_messages,
)
from vlmkit.errors import UserError

_PROBED_ROWS = 64
_ROWS_AT_ONCE = 1000


class HubConversations:
    """A source of conversations from a data set by its hub name, or a local one, loaded as a whole.

    Turns are in a column of conversations (forms: ``messages.read_messages``) or in one of questions and one of
    answers. An image, a list of them or null is in the image column; a set without one is of text alone. Columns that
    are not named are found by their usual names; ``id`` and ``question_type`` are used where they are. Without
    ``split``, it is ``train``. The fingerprint covers all turns and some of the images.

    Raises UserError if the data set or a column is not there, and, naming the row, if turns do not alternate.
    """

    def __init__(
        self,
        name: str,
        split: str | None = None,
        image: str | None = None,
        conversations: str | None = None,
        question: str | None = None,
        answer: str | None = None,
        revision: str | None = None,
        config: str | None = None,
    ) -> None:
        rows = load_rows(name, split, revision, config)
        self._name, where = name, f"The data set {name}"
        columns = rows.column_names
        self._turns = _turn_columns(columns, conversations, question, answer, where)
        self._image = _image_column(columns, image, where)
        extra = [column for column in ("id", "question_type") if column in columns and column not in self._turns]
        self._texts = rows.select_columns([*self._turns, *extra])
        self._images = undecoded(rows.select_columns([self._image]), self._image) if self._image else None
        self._files = ImageFolder(Path(name).expanduser())
        if not len(self):
            raise UserError(f"{where} holds no rows; choose another ?split=.")
        self.fingerprint = self._digest()

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> ConversationSample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        identity, turns = self._read(index, self._texts[index])
        images = tuple(partial(read_image, cell, self._files) for cell in self._cells(index))
        return ConversationSample(identity, images, turns)

    def _read(self, index: int, row: Mapping[str, Any]) -> tuple[str, tuple[Turn, ...]]:
        """Identity and turns of a row."""
        where = f"row {index} of {self._name}"
        family = str(row.get("question_type") or "all")
        if len(self._turns) == 1:
            turns = read_messages(_messages(row[self._turns[0]]), where, family)
        else:
            question, answer = self._turns
            turns = (read_answer(row[question], row[answer], where, family),)
        return str(row.get("id") or f"{self._name}:{index}"), turns

    def _cells(self, index: int) -> list[Any]:
        """The image cells of a row."""
        if self._images is None:
            return []
        cell = self._images[index][self._image]
        return [one for one in (cell if isinstance(cell, list) else [cell]) if one is not None]

    def _digest(self) -> str:
        digest, index = sha256(), 0
        for batch in self._texts.iter(batch_size=_ROWS_AT_ONCE):
            for row in (dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)):
                identity, turns = self._read(index, row)
                described = [[turn.question, turn.answer, turn.family, turn.references] for turn in turns]
                digest.update(json.dumps([identity, described]).encode())
                index += 1
        for index in range(0, len(self), max(1, len(self) // _PROBED_ROWS)):
            for cell in self._cells(index):
                try:
                    digest.update(read_image(cell, self._files))
                except BadSample:
                    digest.update(b"bad")
        return digest.hexdigest()


def _messages(cell: Any) -> Any:
    """The list of messages that a cell holds, which may be written as JSON or be a list of each field."""
    if isinstance(cell, str):
        try:
            return json.loads(cell)
        except ValueError:
            return None
    if isinstance(cell, dict):
        return [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]
    return cell


def _turn_columns(
    columns: list[str], conversations: str | None, question: str | None, answer: str | None, where: str
) -> list[str]:
    """The column of conversations, or those of questions and of answers."""
    if question is None and answer is None:
        lowered = {column.lower() for column in columns}
        if conversations is not None or lowered & {*CONVERSATION_NAMES}:
            return [find_column(columns, conversations, CONVERSATION_NAMES, "conversations", where)]
        if not lowered & {*QUESTION_NAMES}:
            raise UserError(
                f"{where} has no column that is called like one of conversations or questions; choose with "
                f"?conversations=, or ?question= and ?answer=, of: {', '.join(columns)}."
            )
    return [
        find_column(columns, question, QUESTION_NAMES, "question", where),
        find_column(columns, answer, ANSWER_NAMES, "answer", where),
    ]


def _image_column(columns: list[str], image: str | None, where: str) -> str | None:
    """The column of images, if there is one."""
    names = ("images", *IMAGE_NAMES)
    if image is None and not {column.lower() for column in columns} & {*names}:
        return None
    return find_column(columns, image, names, "image", where)
