"""MathVista (testmini), read by rules alone: the paper's own pipeline has GPT-4 extract answers; nothing here does.

Source: lupantech/MathVista ``evaluation/extract_answer.py`` (with its quick extraction) and
``evaluation/calculate_score.py`` (Lu et al., arXiv 2310.02255). Answers that the authors' rules cannot read go to their
normalisation as they are, so a number within a sentence is wrong here where GPT-4 would have found it: scores are lower
bounds of the published kind. lmms-eval asks a GPT model as well, so there is no second variant to offer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring
from vlmkit.evals.scoring.edit_distance import levenshtein
from vlmkit.evals.scoring.groups import mean_by_category
from vlmkit.evals.scoring.letters import options

VARIANTS: tuple[Scoring, ...] = ("official",)
METRIC = "accuracy"

_QUOTED = re.compile(r'The answer is "(.*)"\.')
_BRACKETED_LETTER = re.compile(r"\(([a-zA-Z])\)")
_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?\d*\.(\d+)")


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The answer in the form of the references ("" where the output has none).

    With ``choices``: a choice, by its text, by the first letter in brackets, by a letter alone, else the one with the
    least edit distance to the output (the first of several). Integers lose their decimals; floats are rounded to the
    ``precision``; anything else is the output itself. The sentence ``The answer is "...".`` gives what it quotes.

    ``answer_type`` (integer, float, text, list) and ``precision`` (decimals) are read from the case where it has them;
    else both follow from how the first reference is written. An empty output is no answer, as under the authors'
    ``--ignore_empty_extractions``; without that option they give it the shortest choice.
    """
    extraction = _extract(case["prediction"], case)
    if not extraction:
        return ""
    if case.get("choices"):
        return _choice(extraction, options(case))
    answer_type, precision = _answer_form(case)
    if answer_type not in ("integer", "float"):
        return extraction
    try:
        return str(int(float(extraction)) if answer_type == "integer" else round(float(extraction), precision))
    except (ValueError, OverflowError):
        return ""


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the answer as read is a reference to the letter, else 0.0.

    So a float is compared as Python prints it: 1.2 is not the reference "1.20". Of a multiple choice the reference is
    the text of the choice; a letter that is not itself a choice stands for its choice.
    """
    answer = read_answer(case, scoring)
    by_letter = options(case)
    texts = by_letter.values()
    wanted = [ref if ref in texts else by_letter.get(ref, ref) for ref in case["references"]]
    return float(answer != "" and answer in wanted)


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``accuracy`` over all problems and ``<category>/accuracy`` where cases name one (task, context or skill)."""
    return mean_by_category(METRIC, scored)


def _extract(output: str, case: Case) -> str:
    """What the authors' rules extract before they would ask GPT-4; the whole output where they would."""
    quoted = None if output in options(case).values() else _QUOTED.search(output)
    return (quoted.group(1) if quoted else output).strip()


def _choice(extraction: str, choices: Mapping[str, str]) -> str:
    """The text of the choice that an extraction means; ``choices`` by letter."""
    bracketed = _BRACKETED_LETTER.search(extraction)
    named = bracketed.group(1).upper() if bracketed else extraction
    if named in choices:
        return choices[named]
    return min(choices.values(), key=lambda text: levenshtein(named, text))


def _answer_form(case: Case) -> tuple[str, int]:
    """The type of the answer and its decimals: as the case says, else as its first reference is written."""
    reference = next(iter(case["references"]), "")
    decimals = _FLOAT.fullmatch(reference)
    written_as = "integer" if _INTEGER.fullmatch(reference) else "float" if decimals else "text"
    precision = case.get("precision")
    if precision is None:
        precision = len(decimals.group(1)) if decimals else 0
    return case.get("answer_type") or written_as, int(precision)
