"""COCO captions: CIDEr-D over the file, a tenth of it a case.

COCO's "CIDEr" is CIDEr-D: ``Cider`` of tylin/coco-caption and of its release pycocoevalcap clips counts and damps
differences in length. lmms-eval (``lmms_eval/tasks/coco_cap/utils.py``) calls the same scorer. Words are split by
``vlmkit.evals.scoring.cider`` and not by the Java tokenizer that both use; ``docs/scoring.md`` lists what differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.cider import SCALE, CiderD, words

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "cider"


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The words of the caption that are counted, with spaces between."""
    return " ".join(words(case["prediction"]))


def score(case: Case, scoring: Scoring = "official") -> float:
    """The case as a corpus of one image, in which no word tells images apart: always 0.

    Score captions beside each other with ``score_corpus``.
    """
    return score_corpus([case], scoring)[0]


def score_corpus(cases: Sequence[Case], scoring: Scoring = "official") -> list[float]:
    """CIDEr-D / 10 of each caption, 0..1, where the references of all ``cases``, one an image, are the corpus."""
    corpus = CiderD(case["references"] for case in cases)
    return [corpus.score(case["prediction"], case["references"]) / SCALE for case in cases]


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``cider``: the mean over captions, 0..1. Papers print 1000 times that: "CIDEr 120" is 0.12."""
    return {METRIC: mean_score(scored)}
