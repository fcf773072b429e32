"""OCRBench case by case, worked out from the authors' evaluation script and lmms-eval's."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring.ocrbench import METRIC, VARIANTS, aggregate, read_answer, score

FORMULA = "Handwritten Mathematical Expression Recognition"


@pytest.mark.parametrize(
    ("output", "references", "expected"),
    [
        ("CENTRE", ["CENTRE"], 1),
        ("centre", ["CENTRE"], 1),
        ("CENTRE", ["centre"], 1),
        ("The word is 'Centre'.", ["CENTRE"], 1),
        ("centres", ["centre"], 1),
        ("center", ["centre"], 0),
        ("cent re", ["centre"], 0),
        ("c", ["centre"], 0),
        # Parts of other answers count too.
        ("13", ["3"], 1),
        ("not available", ["available"], 1),
        # Newlines are spaces, other whitespace stays, the ends are cut.
        ("new\nyork", ["new york"], 1),
        ("new york", ["new\nyork"], 1),
        ("new  york", ["new york"], 0),
        ("new\tyork", ["new york"], 0),
        ("\n new york \n", ["new york"], 1),
        ("new york", ["  new york\n"], 1),
        # Numbers are texts.
        ("$1,000", ["1,000"], 1),
        ("$1,000", ["1000"], 0),
        ("50%", ["50"], 1),
        ("50", ["50%"], 0),
        ("-5", ["5"], 1),
        ("5", ["-5"], 0),
        ("1e3", ["1000"], 0),
        ("0", ["0"], 1),
        ("0.0", ["0"], 1),
        ("12345", ["12345"], 1),
        ("12435", ["12345"], 0),
        # Nothing against something, and against nothing.
        ("", ["centre"], 0),
        ("", [""], 1),
        ("anything", [""], 1),
        # Any of several references.
        ("12/05/2018", ["12 May", "12/05/2018"], 1),
        ("total: 9.00", ["9.00", "RM 9.00"], 1),
        ("total: 8.00", ["9.00", "RM 9.00"], 0),
        # Unicode.
        ("CAFÉ", ["café"], 1),
        ("cafe", ["café"], 0),
        ("我的店铺", ["店铺"], 1),
        ("Straße", ["STRASSE"], 0),
        ("(A)", ["a"], 1),
    ],
)
def test_texts(output: str, references: list[str], expected: float) -> None:
    case = {"prediction": output, "references": references}
    for scoring in VARIANTS:
        assert score(case, scoring) == score({**case, "category": "Doc-oriented VQA"}, scoring) == expected


@pytest.mark.parametrize(
    ("output", "references", "official", "lmms_eval"),
    [
        # Spaces do not count.
        ("x^{2}+1", ["x ^ { 2 } + 1"], 1, 1),
        ("x ^ 2 = 4", ["x^2=4"], 1, 1),
        ("x^2\n=4", ["x^2=4"], 1, 1),
        ("x^2\t=4", ["x^2=4"], 0, 0),
        ("It is x = 4 .", ["x=4"], 1, 1),
        ("x=5", ["x=4"], 0, 0),
        ("x^{2}", ["x^2"], 0, 0),
        ("", ["x"], 0, 0),
        ("−1", ["-1"], 0, 0),
        ("y", ["x", "y"], 1, 1),
        # Case does; lmms-eval lower-cases the answer and not the reference.
        ("A + B", ["A+B"], 1, 0),
        ("a + b", ["A+B"], 0, 0),
        ("A + B", ["a+b"], 0, 1),
        ("\\Delta", ["\\Delta"], 1, 0),
        ("\\angle ABC = 9 0", ["\\angle A B C = 90"], 1, 0),
        ("\\frac { 1 } { 2 }", ["\\frac{1}{2}"], 1, 1),
    ],
)
def test_formulas(output: str, references: list[str], official: float, lmms_eval: float) -> None:
    for category in (FORMULA, "HME100k"):
        case = {"prediction": output, "references": references, "category": category}
        assert [score(case, scoring) for scoring in VARIANTS] == [official, lmms_eval]


def test_the_answer_as_it_is_searched() -> None:
    case = {"prediction": " The\nSign ", "references": ["sign"]}
    assert read_answer(case) == "the sign"
    assert read_answer({**case, "category": FORMULA}) == "TheSign"
    assert read_answer({**case, "category": FORMULA}, "lmms-eval") == "thesign"


def test_aggregate_sums_up_text_recognition() -> None:
    types = ["Regular Text Recognition", "Digit String Recognition", "Doc-oriented VQA", FORMULA]
    scored = [
        {"prediction": "", "references": [], "category": kind, "score": value}
        for kind, value in zip([*types, types[2]], [1.0, 0.0, 1.0, 0.0, 1.0], strict=True)
    ]
    assert aggregate(scored) == {
        METRIC: 0.6,
        "Regular Text Recognition/accuracy": 1,
        "Digit String Recognition/accuracy": 0,
        "Doc-oriented VQA/accuracy": 1,
        f"{FORMULA}/accuracy": 0,
        "Text Recognition/accuracy": 0.5,
    }
    assert aggregate(scored[2:4]) == {METRIC: 0.5, "Doc-oriented VQA/accuracy": 1, f"{FORMULA}/accuracy": 0}
