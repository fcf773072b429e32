"""VizWiz-VQA: VQA accuracy over ten crowd workers' answers, the references taken as they stand.

Source: ``vqaEval.py`` of the VizWiz API that the organisers hand out (Gurari et al., arXiv 1802.08218), an early state
of the VQA evaluation: the prediction is always normalised and the references never, so that "two" is wrong where all
wrote "two"; most of its contractions are set with the typographic apostrophe. lmms-eval (0.7.3) reads both sides with
M4C's processor, as for TextVQA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring
from vlmkit.evals.scoring.vqa_accuracy import (
    CONTRACTED,
    METRIC,
    agreement,
    evalai_answer,
    mean_by_answer_type,
    misspellings,
    one_line,
    plain_words,
    without_punctuation,
)

__all__ = ["METRIC", "VARIANTS", "aggregate", "read_answer", "score"]

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")

_TYPEWRITTEN = {"ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've"}
"""What the official table spells with the typewriter's apostrophe; what is not irregular has the typographic one."""
_IRREGULAR = {
    "couldnt’ve": "couldn’t’ve",
    "couldn'tve": "couldn’t’ve",
    "hadnt’ve": "hadn’t’ve",
    "hadn'tve": "hadn’t’ve",
    "somebody’d": "somebodyd",
}
_TYPOGRAPHIC = {word.replace("'", "’") for word in CONTRACTED if word not in _TYPEWRITTEN} - set(_IRREGULAR.values())
_CONTRACTIONS: Mapping[str, str] = {
    **misspellings(_TYPEWRITTEN),
    **misspellings(_TYPOGRAPHIC, apostrophe="’"),
    **_IRREGULAR,
}


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The prediction as it is compared: normalised by the rule's own steps."""
    if scoring == "lmms-eval":
        return evalai_answer(case["prediction"])
    return plain_words(without_punctuation(one_line(case["prediction"])), _CONTRACTIONS)


def score(case: Case, scoring: Scoring = "official") -> float:
    """VQA accuracy of one answer, 0..1, each of the references being one person's.

    Raises:
        UserError: If there is no reference.
    """
    references = case["references"]
    if scoring == "lmms-eval":
        references = [evalai_answer(reference) for reference in references]
    return agreement(read_answer(case, scoring), references)


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``vqa_accuracy``, and the accuracy of each answer type ("unanswerable", "other", ...) that ``category`` names."""
    return mean_by_answer_type(scored)
