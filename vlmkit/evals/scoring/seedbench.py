"""SEED-Bench: the letter of the right option of four, about an image or the frames of a video.

Li et al., "SEED-Bench" (arXiv 2307.16125), scored as in lmms-eval's ``tasks/seedbench`` (both variants are its rule).
``category`` is the type of the data: image or video.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring
from vlmkit.evals.scoring.groups import mean_by_category
from vlmkit.evals.scoring.letters import if_shown, is_right

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "accuracy"


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The first character that is not whitespace, as a capital, where it names an option, else "".

    So "Both" reads as B, and "(B)" and "The answer is B" are not read.
    """
    return if_shown(case["prediction"].strip()[:1].upper(), case)


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the letter read is the right one, else 0.0."""
    return float(is_right(read_answer(case, scoring), case))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``accuracy`` of all answers and of each type of data (``image/accuracy``), of the cases that name theirs."""
    return mean_by_category(METRIC, scored)
