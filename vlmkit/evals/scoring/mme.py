"""MME: two yes-or-no questions about each image, in ten subtasks of perception and four of cognition.

Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models" (arXiv 2306.13394), and the
``calculation.py`` of its eval tool. ``category`` is the subtask, ``question_id`` what an image's two questions share.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from vlmkit.errors import UserError
from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, mean_score
from vlmkit.evals.scoring.groups import group_by
from vlmkit.evals.scoring.yes_no import right_answer

VARIANTS: tuple[Scoring, ...] = ("official", "lmms-eval")
METRIC = "total"

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
QUESTIONS_PER_IMAGE = 2
_PREFIX = 4
"""How many characters of an answer are looked at."""


def read_answer(case: Case, scoring: Scoring = "official") -> str:
    """``yes`` where the first four characters, in lower case, hold "yes"; else ``no`` where they hold "no"; else "".

    lmms-eval first drops surrounding whitespace and every period, and takes a lone "y" or "n" as well.
    """
    text = case["prediction"].lower()
    if scoring == "lmms-eval":
        text = text.strip().replace(".", "")
        text = {"y": "yes", "n": "no"}.get(text, text)
    beginning = text[:_PREFIX]
    return next((answer for answer in ("yes", "no") if answer in beginning), "")


def score(case: Case, scoring: Scoring = "official") -> float:
    """1.0 where the answer read is the right one, else 0.0. Raises UserError where the reference is not yes or no."""
    return float(read_answer(case, scoring) == right_answer(case))


def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> dict[str, float]:
    """``accuracy`` and ``accuracy_plus`` by subtask (``count/accuracy``); ``perception``, ``cognition``, ``total``.

    Accuracy is the share of questions, accuracy plus the share of images with both questions right; MME's score of a
    subtask is their sum in percent, at most 200. The last three are sums of such scores over the most they can be for
    the subtasks that are there: with all fourteen, MME's perception / 2000, its cognition / 800, and both together
    / 2800. The paper of the frontier does not say how it brings MME to 0..1; this is our choice. An image with one of
    its questions missing (under a limit) does not count as right in accuracy plus. Raises UserError where a case has
    no or an unknown ``category``, no ``question_id``, or an image has more than two questions.
    """
    subtasks = group_by("category", scored)
    if unknown := sorted(subtasks.keys() - {*PERCEPTION, *COGNITION}):
        known = ", ".join(PERCEPTION + COGNITION)
        raise UserError(f"MME has no subtask {', '.join(unknown)}: make every category one of {known}")
    numbers: dict[str, float] = {}
    shares: dict[str, float] = {}
    for subtask, cases in subtasks.items():
        accuracy, accuracy_plus = mean_score(cases), _accuracy_plus(subtask, cases)
        numbers |= {f"{subtask}/accuracy": accuracy, f"{subtask}/accuracy_plus": accuracy_plus}
        shares[subtask] = (accuracy + accuracy_plus) / 2
    for name, group in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if there := [value for subtask, value in shares.items() if subtask in group]:
            numbers[name] = fmean(there)
    return numbers | {METRIC: fmean(shares.values())}


def _accuracy_plus(subtask: str, cases: Sequence[ScoredCase]) -> float:
    images = group_by("question_id", cases)
    for image, questions in images.items():
        if len(questions) > QUESTIONS_PER_IMAGE:
            raise UserError(
                f"image {image} of {subtask} has {len(questions)} questions, MME asks {QUESTIONS_PER_IMAGE}: "
                "give each image a question_id of its own"
            )
    return fmean(sum(case["score"] for case in pair) == QUESTIONS_PER_IMAGE for pair in images.values())
