"""ScienceQA against readings worked out by hand from LLaVA's eval_science_qa.py and lmms-eval's tasks/scienceqa."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring import scienceqa_img
from vlmkit.evals.scoring.case import Case, score_cases

CHOICES = ["solid", "a liquid", "gas"]

# prediction, as LLaVA reads it, as lmms-eval reads it
READINGS = [
    ("A", "A", "A"),
    ("B", "B", "B"),
    ("C", "C", "C"),
    ("D", "", ""),  # three options were shown
    ("E", "", ""),
    ("F", "", ""),
    ("a", "", "A"),
    ("b", "", "B"),
    (" A ", "A", "A"),
    ("A.", "", "A"),
    ("A. ", "A", "A"),
    ("A. solid", "A", "A"),
    ("A.solid", "", "A"),
    ("a. solid", "", ""),
    (" A. solid", "", "A"),
    ("D. none", "", ""),
    ("(A)", "", ""),
    ("A)", "", ""),
    ("A) solid", "", ""),
    ("A: solid", "", ""),
    ("A, B", "", ""),
    ("AB", "", ""),
    ("A. B. ", "A", "A"),
    ("A\n", "A", "A"),  # the break counts as ". "
    ("A\nbecause it is hard", "A", ""),
    ("\nA", "", "A"),  # it begins with ". "
    ("A.\nbecause", "", "A"),  # "A.. because"
    ("The answer is B.", "B", ""),
    ("The answer is B", "B", ""),
    ("The answer is C. gas", "C", ""),
    ("The answer is C because A is solid", "C", ""),
    ("The answer is A or The answer is B.", "B", ""),  # a period goes first
    ("The answer is B. The answer is C.", "B", ""),
    ("B. The answer is C.", "B", "B"),
    ("It is warm. The answer is C.", "C", ""),
    ("the answer is B", "", ""),
    ("The answer is b", "", ""),
    ("The answer is (B)", "", ""),
    ("The answer is:B", "", ""),
    ("The answer is\nB", "", ""),
    ("The answer is D.", "", ""),
    ("The answer is A liquid", "A", ""),  # the article
    ("The answer is Cold", "C", ""),
    ("The answer is gas", "", ""),
    ("Answer: B", "", ""),
    ("solid", "", ""),
    ("a liquid", "", ""),
    ("", "", ""),
    (" ", "", ""),
    (".", "", ""),
    ("Ｂ", "", ""),
    ("\u0412", "", ""),  # Cyrillic
    ("\u00a0B\u00a0", "B", "B"),
    ("FAILED", "", ""),
]


@pytest.mark.parametrize(("prediction", "official", "lmms_eval"), READINGS)
def test_letters_are_read_as_llava_and_lmms_eval_do(prediction: str, official: str, lmms_eval: str) -> None:
    for right in "ABC":
        case: Case = {"prediction": prediction, "references": [right], "choices": CHOICES}
        assert scienceqa_img.read_answer(case) == official
        assert scienceqa_img.read_answer(case, "lmms-eval") == lmms_eval
        assert scienceqa_img.score(case) == float(official == right)
        assert scienceqa_img.score(case, "lmms-eval") == float(lmms_eval == right)


def test_llava_knows_five_letters() -> None:
    five: Case = {"prediction": "E", "references": ["E"], "choices": list("vwxyz")}
    assert scienceqa_img.score(five) == 1
    six: Case = {"prediction": "F", "references": ["F"], "choices": list("uvwxyz")}
    assert scienceqa_img.score(six) == 0
    assert scienceqa_img.score(six, "lmms-eval") == 1


def test_accuracy_is_the_share_of_right_answers() -> None:
    cases: list[Case] = [
        {"prediction": said, "references": ["B"], "choices": CHOICES}
        for said in ("B", "The answer is B.", "a liquid", "", "A")
    ]
    assert scienceqa_img.aggregate(score_cases(scienceqa_img, cases)) == pytest.approx({"accuracy": 2 / 5})
