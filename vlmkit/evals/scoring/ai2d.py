"""AI2D: the letter of the right option of a question about a science diagram.

Kembhavi et al., "A Diagram Is Worth A Dozen Images" (arXiv 1603.07396), scored as in lmms-eval's ``tasks/ai2d`` (both
variants are its rule).
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.letters import if_shown, is_right

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "accuracy"

_LEADING = re.compile(r"\s*([A-Z])\.")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """A capital letter with a period at the beginning, else all of the answer without punctuation, in either case.

    "" where that is not the letter of an option: "B) sun", "the sun" and a letter among spaces are not read.
    """
    leading = _LEADING.match(case["prediction"])
    text = leading[1] if leading else case["prediction"].translate(_PUNCTUATION)
    return if_shown(text.upper(), case)


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the letter read is the right one, else 0.0."""
    return float(is_right(read_answer(case, scoring), case))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """The share of answers that are right."""
    return {METRIC: mean_score(scored)}
