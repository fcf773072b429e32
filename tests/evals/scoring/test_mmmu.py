"""MMMU case by case, worked out from the authors' ``eval_utils.py`` (and lmms-eval's reading of letters)."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring.mmmu import METRIC, VARIANTS, aggregate, read_answer, score

CITIES = ["Paris", "London", "Rome", "Berlin"]


@pytest.mark.parametrize(
    ("output", "official", "lmms_eval"),
    [
        ("A", "A", "A"),
        ("A.", "A", "A"),
        ("A;", "A", "A"),
        ("'C'", "C", "C"),
        ("\nC\n", "C", "C"),
        ("(B)", "B", "B"),
        ("(B) London", "B", "B"),
        ("The answer is C", "C", "C"),
        ("The answer is (C).", "C", "C"),
        ("Answer: D", "D", "D"),
        ("the letter is D , finally", "D", "D"),
        # Several letters: the last one, and letters in brackets before any other.
        ("A or B", "B", "B"),
        ("A, B", "B", "B"),
        ("I pick option B because A is too small", "A", "A"),
        ("(A) is wrong, so (D)", "D", "D"),
        ("Neither (A) nor (B) nor (C)", "C", "C"),
        ("(A) rather than B", "A", "A"),
        # Texts of options count in outputs of six words or more.
        ("The capital city of France is Paris", "A", "A"),
        ("PARIS is what I would have said", "A", "A"),
        ("It is Paris, not London, that I choose", "B", "B"),
        ("Paris", "", ""),
        # Outer marks are taken off in the order , . ! ? ; : ' and each only once.
        ("D!.", "D", "D"),
        ("D.!", "", "D"),
        # lmms-eval reads letters before a space or a period, whatever they belong to.
        ("B. London", "", "B"),
        ("DNA is the answer I would give", "", "A"),
        ("Option A. It has Rome in it", "C", "A"),
        ("A. Paris B. London", "", "A"),
        # What neither reads.
        ("", "", ""),
        ("b", "", ""),
        ("(a)", "", ""),
        ("B)", "", ""),
        ("**B**", "", ""),
        ("Ａ", "", ""),
        ("E", "", ""),
        ("The answer is E", "", ""),
        ("B\nbecause it is so", "", ""),
    ],
)
def test_letters(output: str, official: str, lmms_eval: str) -> None:
    for scoring, letter in zip(VARIANTS, (official, lmms_eval), strict=True):
        for reference in "ABCD":
            case = {"prediction": output, "references": [reference], "choices": CITIES}
            assert read_answer(case, scoring) == letter
            assert score(case, scoring) == float(letter == reference)


def test_letters_reach_as_far_as_the_options() -> None:
    many = {"prediction": "(J)", "references": ["J"], "choices": [str(n) for n in range(10)]}
    assert score(many) == score({**many, "references": ["I", "J"]}) == 1
    assert score({**many, "choices": CITIES, "references": ["A"]}) == 0


@pytest.mark.parametrize(
    ("output", "references", "expected"),
    [
        ("5", ["5"], 1),
        ("5.0", ["5"], 1),
        ("5", ["5.00"], 1),
        ("six", ["6"], 0),
        ("1,000", ["1000"], 1),
        ("1000", ["1,000"], 1),
        ("about 2,500 people", ["2500"], 1),
        ("$24,000", ["24000"], 1),
        ("50%", ["50"], 1),
        ("50%", ["50%"], 1),
        ("0.5", ["50%"], 0),
        ("-7", ["-7"], 1),
        ("-7", ["7"], 0),
        ("1.5e3", ["1500"], 1),
        ("about 1.5e3 volts", ["1500"], 1),
        ("0", ["0.0"], 1),
        ("0.004", ["0"], 1),
        ("-.5", ["-0.5"], 1),
        # Periods are taken off both ends first.
        (".5", ["0.5"], 0),
        ("0.5.", ["0.5"], 1),
        ("3/4", ["0.75"], 0),
        # Rounded to two decimals on both sides.
        ("x = 3.14159", ["3.14"], 1),
        ("3.146", ["3.15"], 1),
        ("3.146", ["3.14"], 0),
        # Commas go wherever they are, and a number behind the last comma is one by itself.
        ("1,2,3", ["123"], 1),
        ("1,2,3", ["3"], 1),
        ("1,2,3", ["2"], 0),
        ("12 and 15", ["15"], 1),
        # Text: part of the output, in any case.
        ("cat", ["Cat"], 1),
        ("concatenate", ["cat"], 1),
        ("dog", ["cat"], 0),
        ("ZÜRICH", ["Zürich"], 1),
        ("4 cm", ["4 cm."], 0),
        ("twelve", ["12", "twelve"], 1),
        ("It could be oxygen", ["Oxygen"], 1),
        # One character needs a space beside it.
        ("c", ["C"], 1),
        ("π", ["π"], 1),
        ("vitamin c", ["c"], 1),
        ("cat", ["c"], 0),
        ("a\ncat", ["a"], 0),
        # Only what comes behind the last lead word, the shortest of several.
        ("The answer is 12", ["12"], 1),
        ("Therefore, the result is 42.", ["42"], 1),
        ("It is a cat sitting", ["cat"], 1),
        ("The cat is grey", ["cat"], 0),
        ("The answer is yes because it is so", ["yes"], 0),
        ("First 3.\nSo the total is 9", ["9"], 1),
        ("First 3.\nSo the total is 9", ["3"], 0),
        ("The rate is 5\nThe total is 9", ["5"], 1),
        ("x = 5\ny = 9", ["9"], 1),
        ("x = 5\ny = 9", ["5"], 0),
        ("The answer is :", ["answer"], 1),
        ("", ["5"], 0),
        ("", ["cat"], 0),
    ],
)
def test_open_answers(output: str, references: list[str], expected: float) -> None:
    for scoring in VARIANTS:
        assert score({"prediction": output, "references": references}, scoring) == expected


def test_the_parts_that_are_searched() -> None:
    assert read_answer({"prediction": "The rate is 5\nThe total is 9.", "references": ["9"]}) == "5\n9"
    assert read_answer({"prediction": "Blue", "references": ["blue"]}) == "blue"


def test_aggregate_weighs_questions_alike() -> None:
    scores = {"Math": [1, 0, 0], "Physics": [1], "Music": [0]}
    scored = [
        {"prediction": "", "references": [], "category": subject, "score": float(value)}
        for subject, values in scores.items()
        for value in values
    ]
    assert aggregate(scored) == {
        METRIC: pytest.approx(2 / 5),
        "Math/accuracy": pytest.approx(1 / 3),
        "Physics/accuracy": 1,
        "Music/accuracy": 0,
        "Science/accuracy": pytest.approx(2 / 4),
        "Art and Design/accuracy": 0,
    }


def test_no_cases_have_no_mean() -> None:
    with pytest.raises(ValueError):
        aggregate([])
