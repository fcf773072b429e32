"""ChartQA: relaxed accuracy, numbers within 5 % and texts exactly (Masry et al., arXiv 2203.10244, section 5.1).

The authors give no code; the rule is that of lmms-eval (``lmms_eval/tasks/chartqa/utils.py``), which has it from
QwenLM/Qwen-VL ``eval_mm/evaluate_vqa.py`` and this from pix2struct.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring
from vlmkit.evals.scoring.groups import mean_by_category

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "relaxed_accuracy"
TOLERANCE = 0.05
"""Error that a number may have, relative to the reference."""


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The whole output without surrounding whitespace (Qwen-VL); as it came for lmms-eval."""
    return case["prediction"].strip() if scoring == "official" else case["prediction"]


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the answer is one of the references: within 5 % of a number, else equal to the text but for case.

    A number is what Python's ``float`` reads; a final ``%`` divides it by 100, so "5%" is 0.05 and not 5. Answers with
    thousands separators or currency signs are texts, and so is a reference of zero, which leaves no relative error.
    """
    answer = read_answer(case, scoring)
    return float(any(_relaxed_match(answer, reference) for reference in case["references"]))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``relaxed_accuracy`` over all questions and ``<category>/relaxed_accuracy`` (human, augmented)."""
    return mean_by_category(METRIC, scored)


def _relaxed_match(answer: str, reference: str) -> bool:
    number, target = _number(answer), _number(reference)
    if number is not None and target:
        return abs(number - target) / abs(target) <= TOLERANCE
    return answer.lower() == reference.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
