"""GQA: exact match with case and punctuation left aside.

Source: lmms-eval (0.7.3) ``tasks/gqa/gqa.yaml``: the ``exact_match`` of Hugging Face evaluate with ``ignore_case`` and
``ignore_punctuation``, which deletes the 32 marks of ``string.punctuation`` and puts no space in their place. Articles
and number words are left as they are.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "exact_match"

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The prediction as it is compared: without surrounding whitespace, in lower case, without punctuation."""
    return _normalise(case["prediction"].strip())


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the prediction is the reference (or one of them) but for case and punctuation, else 0.0."""
    return float(read_answer(case) in map(_normalise, case["references"]))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``exact_match``: the share of all (at least one) cases that match."""
    return {METRIC: mean_score(scored)}


def _normalise(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)
