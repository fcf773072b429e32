"""AI2D against readings worked out by hand from lmms-eval's tasks/ai2d and its exact match."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring import ai2d
from vlmkit.evals.scoring.case import Case, score_cases

CHOICES = ["sun", "Moon", "the earth", "d"]

READINGS = [
    ("A", "A"),
    ("B", "B"),
    ("C", "C"),
    ("D", "D"),
    ("a", "A"),
    ("b", "B"),
    ("E", ""),
    ("Z.", ""),
    ("A.", "A"),
    ("A. sun", "A"),
    ("A.sun", "A"),
    (" B. Moon", "B"),
    ("\n\tC. the earth", "C"),
    ("B. A", "B"),
    ("A.B.", "A"),
    ("a. sun", ""),  # only a capital with a period leads
    ("a.", "A"),
    ("(A)", "A"),
    ("(b)", "B"),
    ("[C]", "C"),
    ("{D}", "D"),
    ("A)", "A"),
    ("A) sun", ""),
    ("(A) sun", ""),
    ("A: sun", ""),
    ("A,", "A"),
    ("**B**", "B"),
    ("_B_", "B"),
    ('"C"', "C"),
    ("'d'", "D"),
    ("- A", ""),  # a space is left
    ("A ", ""),
    (" A", ""),
    ("A\n", ""),
    ("B.\n", "B"),
    ("AB", ""),
    ("A, B", ""),
    ("A/B", ""),
    ("sun", ""),
    ("Moon", ""),
    ("d", "D"),  # the letter; that it is the text of D as well does not matter
    ("The answer is B", ""),
    ("The answer is B.", ""),
    ("Answer: B.", ""),
    ("", ""),
    (" ", ""),
    (".", ""),
    ("...", ""),
    ("Ａ", ""),
    ("\u201cA\u201d", ""),  # typographic quotes are no ASCII punctuation
    ("É. sun", ""),
    ("A\u3002", ""),
]


@pytest.mark.parametrize(("prediction", "letter"), READINGS)
def test_a_leading_capital_or_the_bare_answer_is_the_letter(prediction: str, letter: str) -> None:
    for right in "ABCD":
        case: Case = {"prediction": prediction, "references": [right], "choices": CHOICES}
        for scoring in ai2d.VARIANTS:
            assert ai2d.read_answer(case, scoring) == letter
            assert ai2d.score(case, scoring) == float(letter == right)


def test_accuracy_is_the_share_of_right_answers() -> None:
    cases: list[Case] = [
        {"prediction": said, "references": ["B"], "choices": CHOICES} for said in ("B. Moon", "Moon", "(B)", "A")
    ]
    assert ai2d.aggregate(score_cases(ai2d, cases)) == {"accuracy": 0.5}
