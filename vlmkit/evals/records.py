"""What is kept of every question that a model was asked: one JSON line each. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmkit.errors import UserError
from vlmkit.evals.scoring.case import ScoredCase
from vlmkit.runs import write_atomically


@dataclass(frozen=True)
class SampleRecord:
    """One question, what the model wrote, how the rule read it, and what that was worth (0..1).

    ``group`` is equal for questions about the same images. ``error`` says why the model was not asked, which counts as
    a wrong answer. ``seconds`` is the question's share of the time that its window took to load and to answer; records
    are compared without it.
    """

    id: str
    family: str
    prompt: str
    prediction: str
    answer: str
    references: tuple[str, ...]
    score: float
    choices: tuple[str, ...] = ()
    category: str = ""
    question_id: str = ""
    group: str = ""
    error: str = ""
    seconds: float = field(default=0.0, compare=False)

    def case(self) -> ScoredCase:
        """The record as scoring rules take it."""
        return {
            "prediction": self.prediction,
            "references": self.references,
            "choices": self.choices,
            "category": self.category,
            "question_id": self.question_id,
            "error": self.error,
            "score": self.score,
        }


@dataclass(frozen=True)
class RecordsFile:
    """The records of a finished benchmark, and beside them ``about``: what they are the answers to.

    Two files of equal ``about`` hold the same answers. Reading raises UserError where a file is damaged.
    """

    path: Path

    @property
    def about_path(self) -> Path:
        return self.path.with_suffix(".json")

    def write(self, records: Iterable[SampleRecord], about: Mapping[str, Any]) -> None:
        """Write both files; a reader never sees new records beside what an older file said about its own."""
        self.about_path.unlink(missing_ok=True)
        write_atomically(self.path, "".join(json.dumps(asdict(record)) + "\n" for record in records))
        write_atomically(self.about_path, json.dumps(about, indent=2) + "\n")

    def about(self) -> dict[str, Any] | None:
        """What the records are about; None where there are none."""
        if not (self.about_path.is_file() and self.path.is_file()):
            return None
        (about,) = _objects(self.about_path, [self.about_path.read_text(encoding="utf-8")])
        return about

    def read(self) -> list[SampleRecord]:
        """The records in the order of the questions."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        try:
            return [_record(fields) for fields in _objects(self.path, lines)]
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.path} does not hold records ({error}); remove it and evaluate again.") from error


def _objects(path: Path, texts: Iterable[str]) -> list[dict[str, Any]]:
    try:
        return [json.loads(text) for text in texts]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); remove it and evaluate again.") from error


def _record(fields: Mapping[str, Any]) -> SampleRecord:
    lists = {name: tuple(fields[name]) for name in ("references", "choices")}
    return SampleRecord(**{**fields, **lists})
