"""MathVista case by case, worked out from the authors' ``extract_answer.py`` and ``calculate_score.py``."""

from __future__ import annotations

from typing import Any

import pytest

from vlmkit.evals.scoring.mathvista import METRIC, VARIANTS, aggregate, read_answer, score

LENGTHS = ["3 cm", "4 cm", "12 cm", "none of them"]


def case(output: str, reference: str, **rest: Any) -> dict[str, Any]:
    return {"prediction": output, "references": [reference], **rest}


@pytest.mark.parametrize(
    ("output", "choice"),
    [
        # By text, by the first letter in brackets, by a letter alone.
        ("12 cm", "12 cm"),
        (" 12 cm\n", "12 cm"),
        ("C", "12 cm"),
        ("(C)", "12 cm"),
        ("(c)", "12 cm"),
        ("(C) 12 cm", "12 cm"),
        ("(B) 12 cm", "4 cm"),
        ("The answer is (D).", "none of them"),
        ("(A) or (B)", "3 cm"),
        ("Not (b) but (A)", "4 cm"),
        ('The answer is "12 cm".', "12 cm"),
        ('So I say: The answer is "B". Sure.', "4 cm"),
        # Else the nearest by edits: "12" is 3 from "12 cm", 4 from "3 cm" and "4 cm".
        ("12", "12 cm"),
        ("4", "4 cm"),
        ("12 CM", "12 cm"),
        ("None of them.", "none of them"),
        ("12 cm.", "12 cm"),
        # "c" and "E" are no letters of the four: 3 edits from "3 cm" and 4 from it, in both the first of equals.
        ("c", "3 cm"),
        ("E", "3 cm"),
        ("(E)", "3 cm"),
        # Seventeen letters without brackets are nearest to the longest choice.
        ("The answer is C", "none of them"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_choices(output: str, choice: str) -> None:
    for reference in LENGTHS:
        problem = case(output, reference, choices=LENGTHS)
        assert read_answer(problem) == choice
        assert score(problem) == float(reference == choice)


def test_letters_that_are_choices_or_stand_for_them() -> None:
    """The authors turn the answer "A" into the first choice even where another choice reads "A"."""
    assert score(case("B", "4 cm", choices=LENGTHS)) == score(case("B", "B", choices=LENGTHS)) == 1
    turned = ["C", "B", "A"]
    assert read_answer(case("A", "A", choices=turned)) == "C"
    assert score(case("A", "A", choices=turned)) == 0
    assert score(case("A", "C", choices=turned)) == 1


@pytest.mark.parametrize(
    ("output", "reference", "expected"),
    [
        # Integers lose their decimals, towards zero.
        ("5", "5", 1),
        (" 5\n", "5", 1),
        ("+5", "5", 1),
        ("5.0", "5", 1),
        ("5.9", "5", 1),
        ("6", "5", 0),
        ("-5", "-5", 1),
        ("-5.9", "-5", 1),
        ("-5", "5", 0),
        ("0", "0", 1),
        ("-0.5", "0", 1),
        ("1e3", "1000", 1),
        ("1,000", "1000", 0),
        ("$5", "5", 0),
        ("50%", "50", 0),
        ("007", "7", 1),
        ("five", "5", 0),
        ("５", "5", 1),
        ("inf", "5", 0),
        ("nan", "5", 0),
        ("The answer is 5.", "5", 0),
        ('The answer is "5".', "5", 1),
        ('The answer is "5"', "5", 0),
        ("", "0", 0),
        # Floats are rounded to the decimals of the reference.
        ("1.2", "1.2", 1),
        ("1.24", "1.2", 1),
        ("1.26", "1.2", 0),
        ("1.234", "1.23", 1),
        ("-0.58", "-0.6", 1),
        (".5", "0.5", 1),
        ("3", "3.0", 1),
        ("1.2e1", "12.0", 1),
        ("1.2 cm", "1.2", 0),
        ("1,200.5", "1200.5", 0),
        ("12%", "0.12", 0),
        ('The answer is "0.123".', "0.12", 1),
        # Compared as text: Python prints 1.2, never 1.20.
        ("1.20", "1.20", 0),
        ("", "0.0", 0),
        # Lists and other text.
        ("[1, 2, 3]", "[1, 2, 3]", 1),
        ("[1,2,3]", "[1, 2, 3]", 0),
        ("[0.5, 1.0]", "[0.5, 1.0]", 1),
        ("Nobel", "nobel", 0),
        (" été ", "été", 1),
        ("π", "π", 1),
        ("", "x", 0),
    ],
)
def test_free_answers_by_the_form_of_the_reference(output: str, reference: str, expected: float) -> None:
    assert score(case(output, reference)) == expected
    assert score(case(output, reference, choices=[])) == expected


@pytest.mark.parametrize(
    ("output", "reference", "rest", "expected"),
    [
        ("1.234", "1.2", {"answer_type": "float", "precision": 1.0}, 1),
        ("1.234", "1.2", {"answer_type": "float", "precision": 2}, 0),
        ("2", "2.0", {"answer_type": "float", "precision": 1}, 1),
        ("2.4", "2", {"answer_type": "integer", "precision": None}, 1),
        ("2.4", "2.4", {"answer_type": "text"}, 1),
        ("2.40", "2.4", {"answer_type": "text"}, 0),
        ("[1, 2]", "[1, 2]", {"answer_type": "list"}, 1),
        ("4 cm", "4 cm", {"answer_type": "text", "choices": LENGTHS}, 1),
    ],
)
def test_the_form_that_the_case_names(output: str, reference: str, rest: dict[str, Any], expected: float) -> None:
    assert score(case(output, reference, **rest)) == expected


def test_the_answer_as_read() -> None:
    assert read_answer(case("5.9", "5")) == "5"
    assert read_answer(case("1.26", "1.2")) == "1.3"
    assert read_answer(case("five", "5")) == ""


def test_aggregate() -> None:
    scored = [case("", "", category=task, score=value) for task, value in [("geometry", 1.0), ("charts", 0.0)]]
    assert aggregate(scored) == {METRIC: 0.5, "geometry/accuracy": 1, "charts/accuracy": 0}
    assert VARIANTS == ("official",)
