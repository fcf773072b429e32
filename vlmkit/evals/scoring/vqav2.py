"""VQAv2: VQA accuracy over ten people's answers, as the authors' evaluation computes it.

Source: ``PythonEvaluationTools/vqaEvaluation/vqaEval.py`` of GT-Vision-Lab/VQA at a013f00. Newlines, tabs and
surrounding space are cleaned first. Then, **only where the references are not all equal**, references and prediction
are normalised (punctuation, case, number words, articles, contractions); where they are, they are compared as written,
so that "Yes" is wrong where ten people wrote "yes". lmms-eval (0.7.3; since its pull request 794) always normalises,
and takes digits for grouped by several commas too.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring
from vlmkit.evals.scoring.vqa_accuracy import (
    GROUPED_DIGITS,
    GROUPED_DIGITS_EVALAI,
    METRIC,
    agreement,
    mean_by_answer_type,
    one_line,
    plain_words,
    without_punctuation,
)

__all__ = ["METRIC", "VARIANTS", "aggregate", "read_answer", "score"]

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The prediction as it is compared: cleaned, and normalised where the rule says so for these references."""
    return _as_compared(case, scoring)[0]


def score(case: Case, scoring: Scoring = "official") -> float:
    """VQA accuracy of one answer, 0..1, each of the references being one person's.

    Raises:
        UserError: If there is no reference.
    """
    answer, *references = _as_compared(case, scoring)
    return agreement(answer, references)


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``vqa_accuracy``, and the accuracy of each answer type ("yes/no", "number", "other") that ``category`` names."""
    return mean_by_answer_type(scored)


def _as_compared(case: Case, scoring: Scoring) -> list[str]:
    """The prediction, then the references, as the rule compares them."""
    texts = [one_line(text) for text in (case["prediction"], *case["references"])]
    if scoring == "official" and len(set(texts[1:])) == 1:
        return texts
    grouped_digits = GROUPED_DIGITS if scoring == "official" else GROUPED_DIGITS_EVALAI
    return [plain_words(without_punctuation(text, grouped_digits)) for text in texts]
