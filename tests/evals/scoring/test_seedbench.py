"""SEED-Bench against readings worked out by hand from lmms-eval's tasks/seedbench."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring import seedbench
from vlmkit.evals.scoring.case import Case, score_cases

CHOICES = ["a dog", "Two", "the sea", "Both"]

READINGS = [
    ("A", "A"),
    ("B", "B"),
    ("C", "C"),
    ("D", "D"),
    ("a", "A"),
    ("d", "D"),
    ("E", ""),
    ("e", ""),
    ("Z", ""),
    ("A.", "A"),
    ("A. a dog", "A"),
    ("B)", "B"),
    ("B: Two", "B"),
    ("C, the sea", "C"),
    ("D!", "D"),
    (" A", "A"),
    ("\n\tB\n", "B"),
    ("\u3000C", "C"),  # an ideographic space
    ("(A)", ""),
    ("[B]", ""),
    ("*C*", ""),
    ('"D"', ""),
    ("", ""),
    ("   ", ""),
    (".", ""),
    (".A", ""),
    ("AB", "A"),
    ("A, B", "A"),
    ("B or C", "B"),
    ("DCBA", "D"),
    ("a dog", "A"),
    ("Two", ""),
    ("the sea", ""),
    ("Both", "B"),  # the text of D, by its first character
    ("both", "B"),
    ("The answer is B", ""),
    ("Answer: C", "A"),
    ("Because it is blue", "B"),
    ("cannot tell", "C"),
    ("I do not know", ""),
    ("option A", ""),
    ("1", ""),
    ("Ａ", ""),  # full-width
    ("А", ""),  # Cyrillic
    ("Á", ""),
    ("ß", ""),
    ("\u2460", ""),
]


@pytest.mark.parametrize(("prediction", "letter"), READINGS)
def test_the_first_character_is_the_answer(prediction: str, letter: str) -> None:
    for right in "ABCD":
        case: Case = {"prediction": prediction, "references": [right], "choices": CHOICES}
        for scoring in seedbench.VARIANTS:
            assert seedbench.read_answer(case, scoring) == letter
            assert seedbench.score(case, scoring) == float(letter == right)


def test_accuracy_is_of_all_answers_and_of_each_type() -> None:
    cases: list[Case] = [
        {"prediction": said, "references": ["A"], "choices": CHOICES, "category": kind}
        for kind, said in [("image", "A"), ("image", "B"), ("image", "a dog"), ("video", "C"), ("image", "")]
    ]
    assert seedbench.aggregate(score_cases(seedbench, cases)) == pytest.approx(
        {"accuracy": 2 / 5, "image/accuracy": 2 / 4, "video/accuracy": 0}
    )


def test_cases_that_do_not_name_their_type_count_in_all() -> None:
    cases: list[Case] = [
        {"prediction": "A", "references": ["A"]},
        {"prediction": "A", "references": ["B"], "category": "image"},
    ]
    assert seedbench.aggregate(score_cases(seedbench, cases)) == {"accuracy": 0.5, "image/accuracy": 0}
