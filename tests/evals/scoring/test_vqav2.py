"""VQAv2 answers scored by hand, by the authors' evaluation and by lmms-eval's."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring import vqav2


def nine(answer: str) -> list[str]:
    """References that are not all equal, so that the official rule normalises: nine of the answer, one of another."""
    return [answer] * 9 + ["zebra"]


def all_ten(answer: str) -> list[str]:
    """References that agree, so that the official rule compares them as written."""
    return [answer] * 10


CASES = [
    # prediction, references, official, lmms-eval
    ("red", all_ten("red"), 1.0, 1.0),
    ("red", ["red"] * 4 + ["blue"] * 6, 1.0, 1.0),
    ("red", ["red"] * 3 + ["blue"] * 7, 0.9, 0.9),
    ("red", ["red"] * 2 + ["blue"] * 8, 0.6, 0.6),
    ("red", ["red"] + ["blue"] * 9, 0.3, 0.3),
    ("red", ["green"] * 5 + ["blue"] * 5, 0.0, 0.0),
    # all references agree: as written, or normalised all the same
    ("Red", all_ten("red"), 0.0, 1.0),
    ("Red", all_ten("Red"), 1.0, 1.0),
    ("red.", all_ten("red"), 0.0, 1.0),
    ("yes!", all_ten("yes"), 0.0, 1.0),
    ("the cat", all_ten("the cat"), 1.0, 1.0),
    ("cat", all_ten("the cat"), 0.0, 1.0),
    ("two", all_ten("2"), 0.0, 1.0),
    ("don't walk", all_ten("dont walk"), 0.0, 1.0),
    ("CAFÉ", all_ten("café"), 0.0, 1.0),
    ("Red", ["red"] * 9 + ["red "], 0.0, 1.0),  # equal once surrounding space is gone, so as written
    ("red\nblue", all_ten("red blue"), 1.0, 1.0),  # newlines and tabs go before anything is compared
    ("red\tblue", all_ten("red blue"), 1.0, 1.0),
    ("  red ", all_ten("red"), 1.0, 1.0),
    ("red blue", all_ten("red\nblue "), 1.0, 1.0),
    # case and articles
    ("Red", nine("red"), 1.0, 1.0),
    ("red", nine("RED"), 1.0, 1.0),
    ("the cat", nine("cat"), 1.0, 1.0),
    ("cat", ["a cat"] * 2 + ["The cat"] * 2 + ["dog"] * 6, 1.0, 1.0),
    ("another cat", nine("cat"), 0.0, 0.0),
    ("A", ["the"] * 2 + ["an"] + ["red"] * 7, 0.9, 0.9),  # articles all, so all of them are empty
    # number words
    ("two", nine("2"), 1.0, 1.0),
    ("Ten", nine("10"), 1.0, 1.0),
    ("eleven", nine("11"), 0.0, 0.0),
    ("none", ["none"] + ["pizza"] * 9, 0.3, 0.3),
    ("0", nine("none"), 1.0, 1.0),
    ("left one", nine("left 1"), 1.0, 1.0),
    ("twenty-one", nine("twenty 1"), 1.0, 1.0),  # the hyphen becomes a space, and "one" a word
    # contractions
    ("dont walk", nine("don't walk"), 1.0, 1.0),
    ("don't walk", nine("dont walk"), 1.0, 1.0),
    ("don’t walk", nine("don't walk"), 0.0, 0.0),  # the typographic apostrophe is another letter
    ("lets go", nine("let's go"), 0.0, 0.0),
    ("somebody'd", nine("somebodyd"), 1.0, 1.0),
    ("girls", nine("girl's"), 0.0, 0.0),
    # punctuation
    ("t-shirt", nine("t shirt"), 1.0, 1.0),
    ("t-shirt", nine("tshirt"), 0.0, 0.0),
    ("t-shirt - red", nine("tshirt red"), 1.0, 1.0),  # one hyphen beside a space, and none leaves a space
    ("red,white", nine("red white"), 1.0, 1.0),
    ("red,white", nine("redwhite"), 0.0, 0.0),
    ("red, white,blue", nine("red whiteblue"), 1.0, 1.0),
    ("black/white", nine("black white"), 1.0, 1.0),
    ("black / white", nine("black white"), 1.0, 1.0),
    ("(left)", nine("left"), 1.0, 1.0),
    ("wow!!", nine("wow"), 1.0, 1.0),
    ("2:50", nine("2:50"), 1.0, 1.0),
    ("2:50", nine("2 50"), 0.0, 0.0),
    ("black & white", nine("black and white"), 0.0, 0.0),
    # grouped digits and decimals
    ("1,000", nine("1000"), 1.0, 1.0),
    ("1,,000", nine("1000"), 0.0, 1.0),  # "1 000" officially; lmms-eval's pattern takes several commas
    ("1,,000", nine("1 000"), 1.0, 0.0),
    ("t-shirt 1,000", nine("tshirt 1000"), 1.0, 1.0),  # grouped digits: no mark leaves a space
    ("1, 2", nine("1 2"), 1.0, 1.0),
    ("3.5", nine("3.5"), 1.0, 1.0),
    ("3.5.", nine("3.5"), 1.0, 1.0),
    ("5. floor", nine("5 floor"), 1.0, 1.0),
    ("mr.5", nine("mr5"), 0.0, 0.0),  # a digit follows the period
    ("U.S.", nine("us"), 1.0, 1.0),
    ("no" + "." * 32, nine("no"), 1.0, 1.0),
    ("no" + "." * 33, nine("no"), 0.0, 0.0),  # at most 32 periods go
    # percent and currency
    ("50%", nine("50%"), 1.0, 1.0),
    ("50 %", nine("50%"), 0.0, 0.0),
    ("50%", nine("50"), 0.0, 0.0),
    ("$5", nine("$5"), 1.0, 1.0),
    ("$5.00", nine("$5"), 0.0, 0.0),
    ("$1,000", nine("$1000"), 1.0, 1.0),
    ("5€", nine("5€"), 1.0, 1.0),
    # empty answers and Unicode
    ("", nine("red"), 0.0, 0.0),
    ("", all_ten(""), 1.0, 1.0),
    ("?", nine("a"), 1.0, 1.0),  # nothing is left of either
    ("CAFÉ", nine("café"), 1.0, 1.0),
    ("naïve", nine("naive"), 0.0, 0.0),
    ("红色", nine("红色"), 1.0, 1.0),
    # fewer references
    ("red", ["red"], 0.0, 0.0),
    ("red", ["red"] * 2, 1 / 3, 1 / 3),
    ("red", ["red"] * 3, 2 / 3, 2 / 3),
    ("red", ["red"] * 2 + ["blue"], 4 / 9, 4 / 9),
    ("red", ["red"] * 4, 1.0, 1.0),
]


@pytest.mark.parametrize(("prediction", "references", "official", "lmms_eval"), CASES)
def test_by_hand(prediction: str, references: list[str], official: float, lmms_eval: float) -> None:
    case = {"prediction": prediction, "references": references}
    assert vqav2.score(case) == pytest.approx(official)
    assert vqav2.score(case, scoring="lmms-eval") == pytest.approx(lmms_eval)


def test_the_answer_as_it_is_compared() -> None:
    assert vqav2.read_answer({"prediction": " Two\tdogs. ", "references": all_ten("2 dogs")}) == "Two dogs."
    assert vqav2.read_answer({"prediction": " Two\tdogs. ", "references": nine("2 dogs")}) == "2 dogs"
    assert vqav2.read_answer({"prediction": "Two", "references": all_ten("2")}, scoring="lmms-eval") == "2"


def test_variants() -> None:
    assert vqav2.VARIANTS == ("official", "lmms-eval")
