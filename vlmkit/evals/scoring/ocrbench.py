"""OCRBench: an answer is right if a reference is part of it (Liu et al., arXiv 2305.07895).

Source: Yuliang-Liu/MultimodalOCR ``OCRBench/example.py``; lmms-eval: ``lmms_eval/tasks/ocrbench/utils.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.groups import mean_by_category

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "accuracy"
FORMULAS = ("Handwritten Mathematical Expression Recognition", "HME100k")
"""The type of question whose answers are LaTeX, and the data set that all of them come from."""
TEXT_RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
"""The types that the official report sums up as "Text Recognition"."""


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The output as it is searched: lower-case on one line; a formula with its case and without spaces.

    lmms-eval lower-cases formulas too, though not their references.
    """
    prediction = case["prediction"]
    if _is_formula(case):
        return _compact(prediction.lower() if scoring == "lmms-eval" else prediction)
    return _one_line(prediction)


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where a reference, brought to the same form, occurs anywhere in the answer, else 0.0.

    ``category`` is the question's type; it, or the data set HME100k, tells which questions have formulas for answers.
    """
    answer = read_answer(case, scoring)
    form = _compact if _is_formula(case) else _one_line
    return float(any(form(reference) in answer for reference in case["references"]))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``accuracy`` (of the full set, the official "final score" over 1000), and that of each type.

    ``Text Recognition/accuracy`` is over the six types of ``TEXT_RECOGNITION`` together.
    """
    summary = mean_by_category(METRIC, scored)
    recognition = [case for case in scored if case.get("category") in TEXT_RECOGNITION]
    return summary | ({f"Text Recognition/{METRIC}": mean_score(recognition)} if recognition else {})


def _is_formula(case: Case) -> bool:
    return case.get("category") in FORMULAS


def _one_line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _compact(text: str) -> str:
    return text.strip().replace("\n", "").replace(" ", "")
