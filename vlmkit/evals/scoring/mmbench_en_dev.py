"""MMBench: every question is asked once for each rotation of its options, and counts if all answers are right.

Liu et al., "MMBench: Is Your Multi-modal Model an All-around Player?" (arXiv 2307.06281), read by the exact matching of
open-compass/VLMEvalKit (``vlmeval/utils/matching_util.py``). There is no judge: what the rule cannot read is wrong.
``question_id`` is what the rotations of a question share; ``choices`` are the options in the order of the rotation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.groups import group_by
from vlmkit.evals.scoring.letters import is_right, options

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "circular_accuracy"

_LETTERS = "ABCD"
"""What MMBench's options are called where a case does not give their texts."""
_NO_ANSWER = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NO_OPTION = "Z"
_PUNCTUATION = re.compile(r"[.()\[\],:;!*#{}]")
_LAST_WORDS = 4

_LMMS_LETTERS = "ABCDE"
_LMMS_FORMS = ("{}", "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
_LMMS_SHORT = 3
"""Words up to which a bare A is a letter and not an article."""


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The letter the answer names, else that of the only option whose text it contains, else "".

    A letter: with punctuation as spaces, exactly one option's capital letter is a word of the answer, and first occurs
    among its last four words. A text: in any case, in an answer no longer than twice all options together. Refusals
    and the letter Z read as "". lmms-eval's own matching looks for A to E, bare or in one of twelve forms with
    punctuation, anywhere; a bare letter beside an A is not trusted in an answer of more than three words; texts match
    at any length.
    """
    texts = options(case) or dict.fromkeys(_LETTERS, "")
    read = _read_lmms_eval if scoring == "lmms-eval" else _read_official
    return read(case["prediction"], texts)


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the letter read is the right one, else 0.0: one rotation by itself."""
    return float(is_right(read_answer(case, scoring), case))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``circular_accuracy``: questions with every rotation right. ``vanilla_accuracy``: answers, each by itself.

    As in VLMEvalKit a question is judged by those of its rotations that are there. Raises UserError where a case has no
    ``question_id``.
    """
    questions = group_by("question_id", scored).values()
    circular = fmean(all(case["score"] == 1 for case in rotations) for rotations in questions)
    return {METRIC: circular, "vanilla_accuracy": mean_score(scored)}


def _read_official(answer: str, texts: Mapping[str, str]) -> str:
    if any(refusal in answer for refusal in _REFUSALS):
        return ""
    if _NO_ANSWER not in answer:
        words = _PUNCTUATION.sub(" ", answer).split()
        named = [letter for letter in texts if letter in words]
        if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
            return named[0]
        if not named and _NO_OPTION in words:
            return ""
    if len(answer.lower()) > 2 * sum(len(text) for text in texts.values()):
        return ""
    return _only_text_within(answer, texts)


def _read_lmms_eval(answer: str, texts: Mapping[str, str]) -> str:
    words = answer.split()
    for form in _LMMS_FORMS if _NO_ANSWER not in answer else ():
        named = [letter for letter in _LMMS_LETTERS if form.format(letter) in words]
        is_article = form == "{}" and "A" in words and len(words) > _LMMS_SHORT
        if len(named) == 1 and not is_article:
            return named[0]
    return _only_text_within(answer, texts)


def _only_text_within(answer: str, texts: Mapping[str, str]) -> str:
    named = [letter for letter, text in texts.items() if text and text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else ""
