"""MMMU: the option's letter for multiple choice, the answer found in the output for open questions.

Source: MMMU-Benchmark/MMMU ``eval/eval_utils.py`` (Yue et al., arXiv 2311.16502); lmms-eval:
``lmms_eval/tasks/mmmu/utils.py``. A question is multiple choice if its case has ``choices``; its reference is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.groups import mean_by_category
from vlmkit.evals.scoring.letters import is_right, options

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "accuracy"
DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
"""The 30 subjects, which are the categories of cases, by discipline."""

_PUNCTUATION = (",", ".", "!", "?", ";", ":", "'")
_MIN_WORDS_FOR_TEXT = 6
"""Shorter outputs are not searched for the texts of the options."""
_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""What answers come behind."""
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
"""Numbers with thousands separators, in scientific notation, and plain ones that are no part of the former."""


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """The letter of a multiple choice; of an open question the parts that may hold the answer, one a line.

    A letter is the last one of the first form that occurs: "(A)", "A" by itself, the text of an option in an output of
    six words or more; whitespace around the output is dropped before. lmms-eval takes a letter that a space or else a
    period follows, whatever comes before. "" where there is none: the official code then draws a letter at random; here
    the answer is wrong, so that a score depends on nothing but the outputs.
    """
    if case.get("choices"):
        return _read_letter(case["prediction"].strip(), options(case), scoring)
    return "\n".join(_key_parts(case["prediction"]))


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 for a right answer, else 0.0.

    A letter is right if it is a reference. An open answer is right if one of its parts contains a reference that is
    text, or if it or a number in it equals a reference that is a number, both rounded to two decimals. References of
    one character count only with a space beside them.
    """
    if case.get("choices"):
        return float(is_right(read_answer(case, scoring), case))
    return float(_open_answer_is_right(_key_parts(case["prediction"]), case["references"]))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``accuracy`` over all questions, ``<subject>/accuracy``, and ``<discipline>/accuracy`` over its questions.

    Overall and discipline means weigh questions alike, not subjects, as in the official report (of 30 subjects with 30
    validation questions each, both are the same).
    """
    summary = mean_by_category(METRIC, scored)
    for discipline, subjects in DISCIPLINES.items():
        cases = [case for case in scored if case.get("category") in subjects]
        if cases:
            summary[f"{discipline}/{METRIC}"] = mean_score(cases)
    return summary


def _read_letter(output: str, choices: Mapping[str, str], scoring: Scoring) -> str:
    for mark in _PUNCTUATION:
        output = output.strip(mark)
    output = f" {output} "
    bracketed = {letter: f"({letter})" for letter in choices}
    alone = {letter: f" {letter} " for letter in choices}
    found = _last_of(bracketed, bracketed, output)
    if scoring == "official":
        found = found or _last_of(alone, alone, output)
    else:
        for end in (" ", "."):
            # lmms-eval looks for letters without the space before, and still for their last place with it.
            found = found or _last_of({letter: letter + end for letter in choices}, alone, output)
    if not found and len(output.split()) >= _MIN_WORDS_FOR_TEXT:
        texts = {letter: text.lower() for letter, text in choices.items()}
        found = _last_of(texts, texts, output.lower())
    return found


def _last_of(forms: dict[str, str], placed_by: dict[str, str], output: str) -> str:
    """Of the letters whose form occurs, the one whose ``placed_by`` comes last (the first of equals), or ""."""
    present = [letter for letter, form in forms.items() if form in output]
    return max(present, key=lambda letter: output.rfind(placed_by[letter]), default="")


def _key_parts(output: str) -> list[str]:
    """Of each line what comes behind a word like "is" or "answer", the last line also behind "="; else all of it."""
    text = output.strip().strip(".").lower()
    # The official pattern also splits sentences before a capital, of which the lower-cased text has none.
    lines = text.split("\n")
    parts = []
    for number, line in enumerate(lines, start=1):
        shortest = ""
        for lead in (*_LEADS, "=") if number == len(lines) else _LEADS:
            if lead in line:
                tail = line.rpartition(lead)[2].strip()
                shortest = tail if not shortest or len(tail) < len(shortest) else shortest
        if shortest and shortest not in _PUNCTUATION:
            parts.append(shortest)
    return parts or [text]


def _open_answer_is_right(parts: Iterable[str], references: Iterable[str]) -> bool:
    candidates = [value for part in parts for text in (part, *_numbers(part)) for value in _normalise(text)]
    wanted = [value for reference in references for value in _normalise(reference)]
    numbers = {value for value in candidates if isinstance(value, float)}
    texts = [value for value in candidates if isinstance(value, str)]
    return any(
        value in numbers if isinstance(value, float) else any(value in text for text in texts) for value in wanted
    )


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in pattern.findall(text)]


def _normalise(text: str) -> list[float | str]:
    """A number, rounded to two decimals, or the text in lower case; one character with a space before and behind."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
