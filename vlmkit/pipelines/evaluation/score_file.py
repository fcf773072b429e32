"""Predictions that are on disk, of whatever model, scored by a benchmark's rule. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit.errors import UserError
from vlmkit.evals import scoring as rules
from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, ScoringRule, score_cases

_LISTS = ("references", "choices")
_TEXTS = ("prediction", "category", "question_id", "answer_type", "error")
_NAMES = ("id", "question_id")
"""What tells which case a result belongs to."""


@dataclass(frozen=True)
class ScoredFile:
    """The cases of a file with their scores, in its order, and how the rule reads them."""

    rule: ScoringRule
    scoring: Scoring
    ids: list[Any]
    cases: list[ScoredCase]

    def results(self) -> list[dict[str, Any]]:
        """For every case its ``score`` (0..1), the ``answer`` that was read, and its ``id`` where the file has ids."""
        return [
            {
                **({"id": name} if name is not None else {}),
                "score": case["score"],
                "answer": self.rule.read_answer(case, self.scoring),
            }
            for name, case in zip(self.ids, self.cases, strict=True)
        ]

    def summary(self) -> Mapping[str, float]:
        """The benchmark's numbers by name, over all cases of the file."""
        return self.rule.aggregate(self.cases, self.scoring)


def score_file(path: Path, benchmark: str, scoring: Scoring = "official") -> ScoredFile:
    """Score a JSON list (or, in a ``.jsonl`` file, lines) of objects with ``prediction``, ``references`` and where the
    benchmark needs them ``choices``, ``category`` or ``question_id``.

    A case may have an ``id``; then all must, each another. The records that ``vlmkit eval`` writes are such files.
    Raises UserError for an unknown benchmark or variant, and for a file that does not hold such cases, naming the case.
    """
    rule = rules.rule(benchmark, scoring)
    raw = _read(path)
    if not raw:
        raise UserError(f"{path} holds no case to score; give objects with a prediction and references.")
    cases = [_case(item, f"Case {number} of {path}") for number, item in enumerate(raw, 1)]
    ids = [item.get("id") for item in raw]
    _check_ids(ids, path)
    return ScoredFile(rule, scoring, ids, score_cases(rule, cases, scoring))


def _read(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a JSON file of cases.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#x}); save it as UTF-8."
        ) from error
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        return [_parsed(line, f"{path}, line {number}") for number, line in lines]
    cases = _parsed(text, str(path)) if text.strip() else []
    if not isinstance(cases, list):
        raise UserError(f"{path} is not a JSON list but {_kind(cases)}; write a list of objects, or .jsonl lines.")
    return cases


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error}); correct it.") from error


def _case(item: Any, where: str) -> Case:
    if not isinstance(item, dict):
        raise UserError(f"{where} is {_kind(item)}; write an object with a prediction and references.")
    for key in ("prediction", "references"):
        if key not in item:
            raise UserError(f"{where} has no {key!r}; every case needs a prediction and references.")
    for key in _LISTS:
        values = item.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise UserError(
                f'The {key} of {where[0].lower()}{where[1:]} are no list of strings; write one, like ["a"].'
            )
    if not item["references"]:
        raise UserError(f"{where} has no reference to compare its prediction with; give at least one.")
    texts = {key: item[key] for key in _TEXTS if key in item}
    if isinstance(texts.get("question_id"), int):
        texts["question_id"] = str(texts["question_id"])
    for key, value in texts.items():
        if not isinstance(value, str):
            raise UserError(f"The {key} of {where[0].lower()}{where[1:]} is {_kind(value)}; write a string.")
    if not isinstance(precision := item.get("precision"), int | float | None) or isinstance(precision, bool):
        raise UserError(f"The precision of {where[0].lower()}{where[1:]} is {_kind(precision)}; write a number.")
    lists = {key: item[key] for key in _LISTS if key in item}
    return {**texts, **lists, "precision": precision}  # type: ignore[typeddict-item]


def _check_ids(ids: list[Any], path: Path) -> None:
    if all(name is None for name in ids):
        return
    first: dict[str, int] = {}
    for number, name in enumerate(ids, 1):
        if name is None:
            raise UserError(f"Case {number} of {path} has no id, although others have; give every case one, or none.")
        if (before := first.setdefault(json.dumps(name), number)) != number:
            raise UserError(f"Cases {before} and {number} of {path} both have the id {name!r}; give each its own.")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
