"""TextVQA answers scored by hand, by M4C's evaluator (both sides go through its processor, agreed upon or not)."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring import textvqa


def ten(answer: str) -> list[str]:
    return [answer] * 10


CASES = [
    # prediction, references, score
    ("stop", ten("stop"), 1.0),
    ("stop", ["stop"] * 4 + ["shop"] * 6, 1.0),
    ("stop", ["stop"] * 3 + ["shop"] * 7, 0.9),
    ("stop", ["stop"] * 2 + ["shop"] * 8, 0.6),
    ("stop", ["stop"] + ["shop"] * 9, 0.3),
    ("stop", ten("shop"), 0.0),
    ("stop", ["Stop", "STOP.", "the stop", "stop!"] + ["shop"] * 6, 1.0),
    # case, articles, number words: normalised where all agree as well
    ("STOP", ten("stop"), 1.0),
    ("stop", ten("Stop"), 1.0),
    ("the end", ten("end"), 1.0),
    ("end", ten("The End"), 1.0),
    ("A", ten("a"), 1.0),  # nothing is left of either
    ("A", ten("the"), 1.0),
    ("A", ten("b"), 0.0),
    ("two", ten("2"), 1.0),
    ("2", ten("Two"), 1.0),
    ("none", ten("0"), 1.0),
    ("eleven", ten("11"), 0.0),
    ("seven-eleven", ten("7 eleven"), 1.0),
    # genitives and contractions
    ("mcdonald's", ten("McDonald's"), 1.0),
    ("mcdonald 's", ten("mcdonald's"), 1.0),
    ("mcdonalds", ten("mcdonald's"), 0.0),
    ("dont walk", ten("don't walk"), 1.0),
    ("cant", ten("can't"), 1.0),
    ("whats up", ten("what's up"), 0.0),  # "what's up" against "what 's up"
    ("don’t", ten("don't"), 0.0),
    # commas and question marks go first, and leave no space
    ("1,000", ten("1000"), 1.0),
    ("1,,000", ten("1000"), 1.0),
    ("red,white", ten("redwhite"), 1.0),
    ("red,white", ten("red white"), 0.0),
    ("red, white", ten("red white"), 1.0),
    ("who?me", ten("whome"), 1.0),
    ("t-shirt 1,000", ten("t shirt 1000"), 1.0),  # no grouped digits are left to see, so the hyphen is a space
    ("t-shirt 1,000", ten("tshirt 1000"), 0.0),
    # the other marks
    ("coca-cola", ten("coca cola"), 1.0),
    ("coca-cola", ten("cocacola"), 0.0),
    ("coca-cola - zero", ten("cocacola 0"), 1.0),  # one hyphen beside a space, and none leaves a space
    ("www.site.com", ten("wwwsitecom"), 1.0),
    ("a/c", ten("c"), 1.0),  # "a c", less the article
    ("stop!!", ten("stop"), 1.0),
    ('"stop"', ten("stop"), 1.0),
    ("10:30", ten("10:30"), 1.0),
    ("10:30", ten("10 30"), 0.0),
    ("at&t", ten("at t"), 0.0),
    ("x" + "." * 32, ten("x"), 1.0),
    ("x" + "." * 33, ten("x"), 0.0),  # at most 32 periods go
    # decimals, percent, currency
    ("3.50", ten("3.5"), 0.0),
    ("$3.50", ten("$3.50"), 1.0),
    ("$3.50", ten("3.50"), 0.0),
    (".5", ten(".5"), 1.0),
    ("no. 5", ten("no 5"), 1.0),
    ("no.5", ten("no 5"), 0.0),
    ("50%", ten("50%"), 1.0),
    ("50 %", ten("50%"), 0.0),
    ("£20", ten("£20"), 1.0),
    # space, empty answers, Unicode
    ("new\nyork", ten("new york"), 1.0),
    ("new\tyork ", ten("New  York"), 1.0),
    ("", ten("stop"), 0.0),
    ("", ten(""), 1.0),
    ("?", ten(""), 1.0),
    ("CAFÉ", ten("café"), 1.0),
    ("cafe", ten("café"), 0.0),
    # fewer references (M4C refuses them)
    ("stop", ["stop"], 0.0),
    ("stop", ["stop", "Stop"], 1 / 3),
    ("stop", ["stop", "stop", "shop"], 4 / 9),
]


@pytest.mark.parametrize(("prediction", "references", "expected"), CASES)
def test_by_hand(prediction: str, references: list[str], expected: float) -> None:
    assert textvqa.score({"prediction": prediction, "references": references}) == pytest.approx(expected)


def test_the_answer_as_it_is_compared() -> None:
    assert textvqa.read_answer({"prediction": " The girl's,\nT-shirt? ", "references": ten("x")}) == "girl 's t shirt"


def test_both_names_mean_one_rule() -> None:
    assert textvqa.VARIANTS == ("official", "lmms-eval")
