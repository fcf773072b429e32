"""VizWiz answers scored by hand, by the organisers' evaluation and by lmms-eval's."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring import vizwiz_vqa


def ten(answer: str) -> list[str]:
    return [answer] * 10


CASES = [
    # prediction, references, official (normalises the prediction alone), lmms-eval (M4C's processor on both sides)
    ("red", ten("red"), 1.0, 1.0),
    ("red", ["red"] * 4 + ["blue"] * 6, 1.0, 1.0),
    ("red", ["red"] * 3 + ["blue"] * 7, 0.9, 0.9),
    ("red", ["red"] * 2 + ["blue"] * 8, 0.6, 0.6),
    ("red", ["red"] + ["blue"] * 9, 0.3, 0.3),
    ("red", ten("blue"), 0.0, 0.0),
    ("unanswerable", ["unanswerable"] * 7 + ["keyboard"] * 3, 1.0, 1.0),
    ("Unanswerable.", ["unanswerable"] * 3 + ["keyboard"] * 7, 0.9, 0.9),
    ("unsuitable", ten("unsuitable image"), 0.0, 0.0),
    # case and articles
    ("Red", ten("red"), 1.0, 1.0),
    ("red", ten("Red"), 0.0, 1.0),
    ("Red", ten("Red"), 0.0, 1.0),
    ("the cat", ten("cat"), 1.0, 1.0),
    ("the cat", ten("the cat"), 0.0, 1.0),
    ("cat", ["the cat"] * 5 + ["cat"] * 2 + ["dog"] * 3, 0.6, 1.0),
    # number words
    ("two", ten("2"), 1.0, 1.0),
    ("two", ten("two"), 0.0, 1.0),
    ("2", ten("two"), 0.0, 1.0),
    ("Ten dollars", ten("10 dollars"), 1.0, 1.0),
    ("eleven", ten("11"), 0.0, 0.0),
    ("none", ten("none"), 0.0, 1.0),
    # contractions: "don’t" in the organisers' table, "can't" in theirs too
    ("dont know", ten("don't know"), 0.0, 1.0),
    ("dont know", ten("don’t know"), 1.0, 0.0),
    ("don't know", ten("don't know"), 1.0, 1.0),
    ("cant tell", ten("can't tell"), 1.0, 1.0),
    ("wheres waldo", ten("where's waldo"), 1.0, 0.0),  # M4C's processor makes "where 's" of the reference
    ("whats up", ten("what’s up"), 1.0, 0.0),
    ("lets go", ten("let's go"), 0.0, 0.0),
    ("couldn'tve", ten("couldn’t’ve"), 1.0, 0.0),
    ("somebody’d", ten("somebodyd"), 1.0, 0.0),
    ("campbell's soup", ten("campbell's soup"), 1.0, 1.0),
    ("campbells soup", ten("campbell's soup"), 0.0, 0.0),
    # punctuation
    ("t-shirt", ten("t shirt"), 1.0, 1.0),
    ("t-shirt", ten("t-shirt"), 0.0, 1.0),
    ("t shirt", ten("t-shirt"), 0.0, 1.0),
    ("coke, diet", ten("coke diet"), 1.0, 1.0),
    ("coke,diet", ten("coke diet"), 1.0, 0.0),  # M4C's processor drops the comma: "cokediet"
    ("coke,diet", ten("coke,diet"), 0.0, 1.0),
    ("coca-cola.", ten("coca cola"), 1.0, 1.0),
    ("what?", ten("what"), 1.0, 1.0),
    ("2:50 pm", ten("2:50 pm"), 1.0, 1.0),
    # digits, percent, currency
    ("1,000", ten("1000"), 1.0, 1.0),
    ("1,000", ten("1,000"), 0.0, 1.0),
    ("1,,000", ten("1 000"), 1.0, 0.0),
    ("t-shirt 1,000", ten("tshirt 1000"), 1.0, 0.0),  # the comma is gone before M4C's processor looks for digits
    ("3.5", ten("3.5"), 1.0, 1.0),
    ("5.", ten("5"), 1.0, 1.0),
    ("5", ten("5."), 0.0, 1.0),
    ("50%", ten("50%"), 1.0, 1.0),
    ("$20 bill", ten("$20 bill"), 1.0, 1.0),
    ("20 dollar bill", ten("$20 bill"), 0.0, 0.0),
    # space, empty answers, Unicode
    ("red\nwine", ten("red wine"), 1.0, 1.0),
    ("red\twine", ten("red wine"), 1.0, 1.0),
    ("red  wine", ten("red wine"), 1.0, 1.0),
    ("red", ten("red "), 0.0, 1.0),
    ("red wine", ten("red\nwine"), 0.0, 1.0),
    ("", ten("red"), 0.0, 0.0),
    ("", ten(""), 1.0, 1.0),
    ("the", ten("the"), 0.0, 1.0),
    ("CAFÉ", ten("café"), 1.0, 1.0),
    ("jalapeño", ten("jalapeno"), 0.0, 0.0),
    # fewer references
    ("red", ["red"], 0.0, 0.0),
    ("red", ["red"] * 2, 1 / 3, 1 / 3),
    ("red", ["Red", "red", "red"], 4 / 9, 2 / 3),
]


@pytest.mark.parametrize(("prediction", "references", "official", "lmms_eval"), CASES)
def test_by_hand(prediction: str, references: list[str], official: float, lmms_eval: float) -> None:
    case = {"prediction": prediction, "references": references}
    assert vizwiz_vqa.score(case) == pytest.approx(official)
    assert vizwiz_vqa.score(case, scoring="lmms-eval") == pytest.approx(lmms_eval)


def test_the_answer_as_it_is_compared() -> None:
    case = {"prediction": " The girl's T-shirt. ", "references": ten("shirt")}
    assert vizwiz_vqa.read_answer(case) == "girl's t shirt"
    assert vizwiz_vqa.read_answer(case, scoring="lmms-eval") == "girl 's t shirt"


def test_variants() -> None:
    assert vizwiz_vqa.VARIANTS == ("official", "lmms-eval")
