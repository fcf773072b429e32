"""ChartQA case by case, worked out from relaxed accuracy as Qwen-VL and lmms-eval define it."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring.chartqa import METRIC, VARIANTS, aggregate, read_answer, score


@pytest.mark.parametrize(
    ("output", "references", "expected"),
    [
        # Within 5 % of the reference, the edges included.
        ("100", ["100"], 1),
        ("105", ["100"], 1),
        ("95", ["100"], 1),
        ("105.1", ["100"], 0),
        ("94.9", ["100"], 0),
        ("100", ["105"], 1),
        ("100", ["95"], 0),
        ("21", ["20"], 1),
        ("19", ["20"], 1),
        ("22", ["20"], 0),
        ("2008", ["2010"], 1),
        ("2.0", ["2"], 1),
        ("14.5", ["14.0"], 1),
        # In binary 1.05 - 1 is a little more than 0.05.
        ("1.05", ["1"], 0),
        # Signs.
        ("-100", ["-100"], 1),
        ("-104", ["-100"], 1),
        ("-106", ["-100"], 0),
        ("100", ["-100"], 0),
        ("+3", ["3"], 1),
        # A reference of zero is compared as text.
        ("0", ["0"], 1),
        ("0.0", ["0"], 0),
        ("0.001", ["0"], 0),
        ("0%", ["0%"], 1),
        ("0", ["1"], 0),
        # Percent signs divide by a hundred.
        ("50%", ["50%"], 1),
        ("52%", ["50%"], 1),
        ("53%", ["50%"], 0),
        ("0.5", ["50%"], 1),
        ("50%", ["0.51"], 1),
        ("50", ["50%"], 0),
        ("50%", ["50"], 0),
        ("50 %", ["50%"], 1),
        ("%", ["%"], 1),
        # What Python does not read as a number is text.
        ("1,000", ["1000"], 0),
        ("1,000", ["1,000"], 1),
        ("1,001", ["1,000"], 0),
        ("$5", ["$5"], 1),
        ("$5", ["5"], 0),
        ("5 million", ["5 Million"], 1),
        ("1e3", ["1000"], 1),
        ("1.02E3", ["1000"], 1),
        ("3/4", ["0.75"], 0),
        # Text: equal but for case.
        ("Yes", ["yes"], 1),
        ("ÉTÉ", ["été"], 1),
        ("yes.", ["yes"], 0),
        ("The answer is yes", ["yes"], 0),
        ("light blue", ["light  blue"], 0),
        ("[2010, 2012]", ["[2010, 2012]"], 1),
        ("", ["yes"], 0),
        ("", [""], 1),
        ("", ["5"], 0),
        ("５", ["5"], 1),
        # Several references: any.
        ("12", ["10", "12.3"], 1),
        ("two", ["2", "Two"], 1),
        ("11", ["10", "12"], 0),
    ],
)
def test_relaxed_accuracy(output: str, references: list[str], expected: float) -> None:
    for scoring in VARIANTS:
        assert score({"prediction": output, "references": references}, scoring) == expected


@pytest.mark.parametrize(
    ("output", "reference", "official", "lmms_eval"),
    [(" Yes\n", "yes", 1, 0), ("50%\n", "50%", 1, 0), ("50\n", "50", 1, 1), (" 0 ", "0", 1, 0)],
)
def test_only_the_official_rule_drops_outer_whitespace(
    output: str, reference: str, official: float, lmms_eval: float
) -> None:
    """``float`` reads numbers with whitespace around them; a percent sign must be the last character."""
    case = {"prediction": output, "references": [reference]}
    assert [score(case, scoring) for scoring in VARIANTS] == [official, lmms_eval]
    assert read_answer(case) == output.strip()
    assert read_answer(case, "lmms-eval") == output


def test_aggregate_by_split() -> None:
    scored = [
        {"prediction": "", "references": [], "category": split, "score": value}
        for split, value in [("human", 1.0), ("human", 0.0), ("augmented", 1.0), ("augmented", 1.0)]
    ]
    assert aggregate(scored) == {
        METRIC: 0.75,
        "human/relaxed_accuracy": 0.5,
        "augmented/relaxed_accuracy": 1.0,
    }
