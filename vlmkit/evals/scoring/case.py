"""What a scoring rule is given, cases in the form of a predictions file, and what it must offer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypedDict, runtime_checkable

Scoring = Literal["official", "lmms-eval"]
"""Whose rule: that of the benchmark's authors (the default), or that of lmms-eval where it differs."""


class _Answered(TypedDict):
    prediction: str
    references: Sequence[str]


class Case(_Answered, total=False):
    """One answer to be scored.

    ``prediction`` is the model's raw output, ``references`` what counts as right (of a multiple choice, the letter).
    Benchmarks that need them read ``choices`` (the options in the order shown), ``category`` (split, subtask or type)
    and ``question_id`` (what belongs together: the two questions about an image, the rotations of a question).
    ``answer_type`` and ``precision`` are MathVista's: the form of the answer, and its decimals (None: not a float).
    ``error`` says why the model gave no answer (its image does not decode): the case is wrong, whatever its prediction.
    """

    choices: Sequence[str]
    category: str
    question_id: str
    answer_type: str
    precision: float | None
    error: str


class ScoredCase(Case):
    """A case with what it is worth, 0..1."""

    score: float


class ScoringRule(Protocol):
    """What every module of a benchmark in this room offers: pure functions, no state, no network."""

    VARIANTS: tuple[Scoring, ...]
    """The rules there are: ``official`` first."""
    METRIC: str
    """The key of ``aggregate`` that is the benchmark's own number, 0..1, higher is better."""

    def read_answer(self, case: Case, scoring: Scoring = "official") -> str:
        """The answer as the rule reads it from the raw output ("" where it finds none)."""
        ...

    def score(self, case: Case, scoring: Scoring = "official") -> float:
        """What one answer is worth, 0..1."""
        ...

    def aggregate(self, scored: Sequence[ScoredCase], scoring: Scoring = "official") -> Mapping[str, float]:
        """The benchmark's numbers by name, all in 0..1, over cases that ``score`` (or ``score_corpus``) has scored."""
        ...


@runtime_checkable
class CorpusRule(ScoringRule, Protocol):
    """A rule whose cases can only be scored beside each other (CIDEr weighs n-grams by how rare they are)."""

    def score_corpus(self, cases: Sequence[Case], scoring: Scoring = "official") -> list[float]:
        """What each answer is worth among all of them, 0..1, in the order given."""
        ...


def mean_score(scored: Sequence[ScoredCase]) -> float:
    """The mean of the scores. Raises ValueError where there is no case."""
    if not scored:
        raise ValueError("the mean of no scores is not defined")
    return math.fsum(case["score"] for case in scored) / len(scored)


def score_cases(rule: ScoringRule, cases: Sequence[Case], scoring: Scoring = "official") -> list[ScoredCase]:
    """The cases with their scores, in the order given; 0 where there was no answer to score."""
    if isinstance(rule, CorpusRule):
        scores = rule.score_corpus(cases, scoring) if cases else []
    else:
        scores = [rule.score(case, scoring) for case in cases]
    return [{**case, "score": 0.0 if case.get("error") else value} for case, value in zip(cases, scores, strict=True)]
