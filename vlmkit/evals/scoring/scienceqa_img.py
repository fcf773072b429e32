"""ScienceQA, the questions with an image: the letter of the right option, of two to five.

Lu et al., "Learn to Explain" (arXiv 2209.09513), scored as in LLaVA's ``llava/eval/eval_science_qa.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.letters import if_shown, is_right

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "accuracy"

_ALONE = re.compile(r"\s*([A-E])\s*")
_LEADING = re.compile(r"([A-E])\. ")
_STATED = re.compile(r"The answer is ([A-E])\.")
_STATED_OPENLY = re.compile(r"The answer is ([A-E])")


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The letter of an option that the answer is, or begins with ("B. "), or states ("The answer is B"), else "".

    Line breaks count as ". ". A statement that ends with a period goes before one that does not. Brackets, lower case,
    "B." alone and the text of an option are not read. lmms-eval reads a lone letter in either case and a capital with
    a period at the beginning, and no statement.
    """
    if scoring == "lmms-eval":
        return if_shown(_read_lmms_eval(case["prediction"].strip()), case)
    text = case["prediction"].replace("\n", ". ")
    found = _ALONE.fullmatch(text) or _LEADING.match(text) or _STATED.search(text) or _STATED_OPENLY.search(text)
    return if_shown(found[1], case) if found else ""


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the letter read is the right one, else 0.0; what cannot be read is wrong."""
    return float(is_right(read_answer(case, scoring), case))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """The share of answers that are right."""
    return {METRIC: mean_score(scored)}


def _read_lmms_eval(text: str) -> str:
    if len(text) == 1:
        return text.upper()
    return text[0] if text[1:2] == "." else ""
