"""Exact match: the whole answer is right or it is wrong. The rule of the embedded world and of LLaVA-format files."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score

VARIANTS: tuple[Scoring, ...] = ("official",)
METRIC = "exact_match"


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The prediction in lower case, its whitespace collapsed to single spaces, without one final period."""
    return _normalise(case["prediction"])


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the normalised prediction equals a normalised reference, else 0.0."""
    predicted = read_answer(case)
    return float(any(predicted == _normalise(reference) for reference in case["references"]))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """The share of answers that are right."""
    return {METRIC: mean_score(scored)}


def _normalise(answer: str) -> str:
    return " ".join(answer.lower().split()).removesuffix(".").rstrip()
