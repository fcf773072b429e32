"""Answers on disk as they come, so that an evaluation that is killed goes on where it was.

Samples are asked about in windows of a fixed size. Every rank appends the windows that it has finished to a file of its
own beside the records to be written, one JSON line each, below a line that says what they are the answers to. Which
rank answers a window does not matter to its answers, so any number of ranks may go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmkit.evals.benchmarks import Question


@dataclass(frozen=True)
class Answer:
    """A question with what the model wrote, before it is scored; the fields are those of the record."""

    question: Question
    prediction: str
    group: str
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Window:
    """Answers about consecutive samples. ``skipped`` says of each sample without questions what is wrong with it."""

    number: int
    answers: list[Answer]
    skipped: list[str]

    @property
    def whole(self) -> bool:
        """Whether every sample could be asked about; those that could not may have been repaired since."""
        return not self.skipped and not any(answer.error for answer in self.answers)


class AnswerLog:
    """The unfinished answers beside ``records_path``. ``about`` is all that decides them: logs of another one are void.

    Without a path, or without ``about``, nothing is kept.
    """

    def __init__(self, records_path: Path | None, about: Mapping[str, Any] | None) -> None:
        self._path = None if about is None else records_path
        self._header = json.dumps({"about": about}, sort_keys=True)

    def read(self) -> dict[int, Window]:
        """The windows that all ranks of earlier attempts have answered wholly, by number."""
        windows = {}
        for path in self._files():
            header, *lines = _whole_lines(path).decode().split("\n")
            if header == self._header:
                found = [_window(json.loads(line)) for line in lines if line]
                windows.update({window.number: window for window in found if window.whole})
        return windows

    @contextmanager
    def appending(self, rank: int) -> Iterator[Callable[[Window], None]]:
        """A function that adds a finished window to this rank's file and returns when it is on the disk."""
        if self._path is None:
            yield lambda window: None
            return
        path = self._path.with_name(f".{self._path.stem}.rank{rank}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _whole_lines(path) if path.is_file() else b""
        header = f"{self._header}\n".encode()
        with path.open("r+b" if path.is_file() else "wb") as file:

            def append(line: bytes) -> None:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())

            file.truncate(len(before) if before.startswith(header) else 0)
            file.seek(0, os.SEEK_END)
            if not file.tell():
                append(header)
            yield lambda window: append(f"{json.dumps(asdict(window))}\n".encode())

    def remove(self) -> None:
        """Forget the answers: they are scored and recorded."""
        for path in self._files():
            path.unlink()

    def _files(self) -> list[Path]:
        if self._path is None:
            return []
        return sorted(self._path.parent.glob(f".{self._path.stem}.rank*.jsonl"))


def _whole_lines(path: Path) -> bytes:
    """What the file holds without a last line that a kill has torn."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _window(fields: Mapping[str, Any]) -> Window:
    return Window(fields["number"], [_answer(answer) for answer in fields["answers"]], fields["skipped"])


def _answer(fields: Mapping[str, Any]) -> Answer:
    question = fields["question"]
    lists = {name: tuple(question[name]) for name in ("references", "choices")}
    return Answer(**{**fields, "question": Question(**{**question, **lists})})
