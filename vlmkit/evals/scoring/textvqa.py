"""TextVQA: VQA accuracy over ten people's answers, both sides read with M4C's processor.

Source: ``TextVQAAccuracyEvaluator`` of MMF's M4C, which LLaVA carries as ``llava/eval/m4c_evaluator.py``. It scores
each distinct reference and gives the prediction the score of the one it equals, else 0, which is VQA accuracy; the
original insists on ten references. lmms-eval (0.7.3) computes the same, and its numbers differ by the OCR words in the
prompt, so there is one variant.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.vqa_accuracy import METRIC, agreement, evalai_answer

__all__ = ["METRIC", "VARIANTS", "aggregate", "read_answer", "score"]

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The prediction as M4C's processor leaves it."""
    return evalai_answer(case["prediction"])


def score(case: Case, scoring: Scoring = "official") -> float:
    """VQA accuracy of one answer, 0..1, each of the references being one person's.

    Raises:
        UserError: If there is no reference.
    """
    return agreement(read_answer(case), [evalai_answer(reference) for reference in case["references"]])


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``vqa_accuracy``: the mean of all (at least one) cases."""
    return {METRIC: mean_score(scored)}
