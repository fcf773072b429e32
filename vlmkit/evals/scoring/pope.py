"""POPE: is there such an object in the image? Yes or no, over three splits of negatives.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (arXiv 2305.10355). Answers are read, and
the totals of a split counted, as in AoiDragon/POPE ``evaluate.py``, which LLaVA's ``llava/eval/eval_pope.py`` repeats.
``category`` is the split: random, popular or adversarial.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.groups import group_by
from vlmkit.evals.scoring.yes_no import right_answer

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "f1"

_DENIALS = {"No", "not", "no"}
_OPPOSITE = {"yes": "no", "no": "yes"}
"""What counts as the answer to a question that could not be asked: the wrong one."""


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """``no`` where the text before the first period has the word No, not or no, else ``yes``, even of an empty answer.

    Commas are dropped and words end at spaces alone, so "NO", "no!" and "No" before a line break read as ``yes``.
    lmms-eval takes an answer that is yes or no in any case, without surrounding whitespace, and nothing else.
    """
    prediction = case["prediction"]
    if scoring == "lmms-eval":
        literal = prediction.lower().strip()
        return literal if literal in ("yes", "no") else ""
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "yes" if _DENIALS.isdisjoint(words) else "no"


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the answer read is the right one, else 0.0. Raises UserError where the reference is not yes or no."""
    return float(read_answer(case, scoring) == right_answer(case))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``f1``, ``accuracy``, ``precision``, ``recall`` and ``yes_ratio`` of every split (``random/f1``) and in all.

    In all means the mean of the splits that are there; with lmms-eval the counts of all cases taken together. Yes is
    the positive class; a ratio with nothing below it is 0. Raises UserError where a case has no ``category``.
    """
    splits = {split: _totals(cases, scoring) for split, cases in group_by("category", scored).items()}
    by_split = {f"{split}/{name}": value for split, totals in splits.items() for name, value in totals.items()}
    overall = _totals(scored, scoring)
    if scoring == "official":
        overall = {name: fmean(totals[name] for totals in splits.values()) for name in overall}
    return by_split | overall


def _totals(cases: Sequence[ScoredCase], scoring: Scoring) -> dict[str, float]:
    right = [right_answer(case) for case in cases]
    answers = [
        _OPPOSITE[truth] if case.get("error") else read_answer(case, scoring)
        for case, truth in zip(cases, right, strict=True)
    ]
    pairs = list(zip(right, answers, strict=True))
    hits, false_alarms, misses = (pairs.count(pair) for pair in (("yes", "yes"), ("no", "yes"), ("yes", "no")))
    precision, recall = _ratio(hits, hits + false_alarms), _ratio(hits, hits + misses)
    # what lmms-eval calls the yes ratio is that of the references
    yes = right if scoring == "lmms-eval" else answers
    return {
        "f1": _ratio(2 * precision * recall, precision + recall),
        "accuracy": mean_score(cases),
        "precision": precision,
        "recall": recall,
        "yes_ratio": yes.count("yes") / len(cases),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
