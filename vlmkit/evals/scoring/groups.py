"""Cases that belong together: the splits of a benchmark, its subtasks, the questions about one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlmkit.errors import UserError
from vlmkit.evals.scoring.case import ScoredCase, mean_score

Groups = dict[str, list[ScoredCase]]


def group_by(field: Literal["category", "question_id"], scored: Sequence[ScoredCase]) -> Groups:
    """The cases by what they have in ``field``, in order of appearance. Raises UserError where a case has nothing."""
    if missing := sum(not case.get(field) for case in scored):
        raise UserError(
            f"{missing} of {len(scored)} cases have no {field!r}, which the totals need: add it to every case"
        )
    groups: Groups = {}
    for case in scored:
        groups.setdefault(case[field], []).append(case)
    return groups


def mean_by_category(metric: str, scored: Sequence[ScoredCase]) -> dict[str, float]:
    """``metric``, the mean score of all cases, and ``<category>/metric``, that of each category that cases name."""
    by_category = group_by("category", [case for case in scored if case.get("category")])
    return {metric: mean_score(scored)} | {f"{name}/{metric}": mean_score(cases) for name, cases in by_category.items()}
