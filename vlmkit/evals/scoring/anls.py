"""ANLS, average normalised Levenshtein similarity: nearly right readings of a text count in part.

The rule of the Robust Reading Competition, https://rrc.cvc.uab.es/?ch=17, whose evaluation script is public as
QwenLM/Qwen-VL ``eval_mm/infographicsvqa_eval.py``; lmms-eval (``lmms_eval/api/metrics.py``) has the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring
from vlmkit.evals.scoring.edit_distance import levenshtein
from vlmkit.evals.scoring.groups import mean_by_category

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "anls"
THRESHOLD = 0.5
"""Similarities below it count as 0: half of the text wrong is a different text."""


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The whole output, lower-case, with single spaces."""
    return _normalise(case["prediction"])


def score(case: Case, scoring: Scoring = "official") -> float:
    """1 - distance / length for the nearest reference, 0 where that is below ``THRESHOLD``.

    The distance is that of the normalised texts; the length is that of the longer text as it came, in upper case, so
    surplus whitespace and letters with a longer upper case ("ß") soften an error, as they do in the official script.
    """
    similarity = max((_similarity(case["prediction"], reference) for reference in case["references"]), default=0.0)
    return similarity if similarity >= THRESHOLD else 0.0


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``anls``, the mean over all questions, and ``<category>/anls`` where cases name one (the answer's type)."""
    return mean_by_category(METRIC, scored)


def _normalise(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(prediction: str, reference: str) -> float:
    length = max(len(prediction.upper()), len(reference.upper()))
    return 1 - levenshtein(_normalise(prediction), _normalise(reference)) / length if length else 1.0
