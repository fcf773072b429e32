"""GQA answers scored by hand: equal but for case and the marks of string.punctuation."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring import gqa

CASES = [
    # prediction, reference, score
    ("yes", "yes", 1),
    ("yes", "no", 0),
    ("Yes", "yes", 1),
    ("YES", "yes", 1),
    ("yes", "Yes", 1),
    ("yes.", "yes", 1),
    ("Yes!", "yes", 1),
    ("yes, it is", "yes", 0),
    ("yes no", "yes", 0),
    ("y e s", "yes", 0),
    # nothing but case and punctuation is left aside
    ("the cat", "cat", 0),
    ("a cat", "a cat", 1),
    ("cats", "cat", 0),
    ("two", "2", 0),
    ("2", "2", 1),
    ("none", "0", 0),
    ("dont", "don't", 1),
    ("don’t", "don't", 0),  # the typographic apostrophe is no ASCII mark
    ("lets", "let's", 1),
    ("girl's", "girls", 1),
    # a mark leaves no space
    ("t-shirt", "tshirt", 1),
    ("t-shirt", "t shirt", 0),
    ("t shirt", "t-shirt", 0),
    ("t-shirt", "t-shirt", 1),
    ("black/white", "blackwhite", 1),
    ("red, white", "red white", 1),
    ("red,white", "red white", 0),
    ("black & white", "black  white", 1),  # two spaces
    ("black & white", "black white", 0),
    ('"left"', "left", 1),
    ("(left)", "left", 1),
    ("x_y", "xy", 1),
    # numbers, percent, currency
    ("1,000", "1000", 1),
    ("3.5", "35", 1),
    ("3.5", "3.5", 1),
    ("50%", "50", 1),
    ("50 %", "50", 0),  # a space is left behind
    ("$5", "5", 1),
    ("€5", "5", 0),
    # space, empty answers, Unicode
    (" yes ", "yes", 1),
    ("yes\n", "yes", 1),
    ("\tyes", "yes", 1),
    ("yes .", "yes", 0),  # stripped before the period goes, not after
    ("red\nwine", "red wine", 0),
    ("red  wine", "red wine", 0),
    ("yes", "yes ", 0),  # the reference is not stripped
    ("", "yes", 0),
    ("", "", 1),
    ("...", "", 1),
    ("CAFÉ", "café", 1),
    ("cafe", "café", 0),
    ("是。", "是", 0),
]


@pytest.mark.parametrize(("prediction", "reference", "expected"), CASES)
def test_by_hand(prediction: str, reference: str, expected: float) -> None:
    assert gqa.score({"prediction": prediction, "references": [reference]}) == expected


def test_any_of_several_references_will_do() -> None:
    assert gqa.score({"prediction": "Couch", "references": ["sofa", "couch"]}) == 1.0
    assert gqa.score({"prediction": "bed", "references": ["sofa", "couch"]}) == 0.0


def test_the_answer_as_it_is_compared() -> None:
    assert gqa.read_answer({"prediction": " The T-shirt.\n", "references": ["x"]}) == "the tshirt"


def test_the_share_that_matches() -> None:
    scored = [{"prediction": "", "references": ["x"], "score": worth} for worth in (1.0, 0.0, 0.0, 1.0, 1.0)]
    assert gqa.aggregate(scored) == {gqa.METRIC: pytest.approx(0.6)}
    assert gqa.METRIC == "exact_match"
    assert gqa.VARIANTS == ("official", "lmms-eval")
