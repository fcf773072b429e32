"""The mean score of all cases and of the cases of each category: what most benchmarks report."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from vlmkit.evals.scoring.case import ScoredCase


def means(scored: Sequence[ScoredCase], metric: str) -> dict[str, float]:
    """``metric``, the mean over all cases, and ``metric/<category>``, that over each category, as they come.

    Raises ValueError where there is no case.
    """
    scores: dict[str, list[float]] = {metric: []}
    for case in scored:
        scores[metric].append(case["score"])
        if "category" in case:
            scores.setdefault(f"{metric}/{case['category']}", []).append(case["score"])
    return {name: fmean(values) for name, values in scores.items()}
