"""COCO captions: CIDEr-D over the file, a tenth of it a case."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.cider import SCALE, CiderD

VARIANTS: tuple[Scoring, ...] = ("official",)
METRIC = "cider"


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    return case["prediction"]


def score(case: Case, scoring: Scoring = "official") -> float:
    return score_corpus([case], scoring)[0]


def score_corpus(cases: Sequence[Case], scoring: Scoring = "official") -> list[float]:
    cider = CiderD(case["references"] for case in cases)
    return [cider.score(case["prediction"], case["references"]) / SCALE for case in cases]


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    return {METRIC: mean_score(scored)}
