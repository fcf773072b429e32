"""POPE against readings worked out by hand from AoiDragon/POPE's evaluate.py and lmms-eval's tasks/pope."""

from __future__ import annotations

import pytest

from vlmkit.errors import UserError
from vlmkit.evals.scoring import pope
from vlmkit.evals.scoring.case import Case, ScoredCase, Scoring, score_cases

# prediction, as the authors read it, as lmms-eval reads it
READINGS = [
    ("yes", "yes", "yes"),
    ("no", "no", "no"),
    ("Yes", "yes", "yes"),
    ("No", "no", "no"),
    ("YES", "yes", "yes"),
    ("NO", "yes", "no"),  # the words that deny are No, not and no, and these alone
    ("nO", "yes", "no"),
    ("Not", "yes", ""),
    ("NOT", "yes", ""),
    ("Yes.", "yes", ""),
    ("No.", "no", ""),
    ("no.", "no", ""),
    (".no", "yes", ""),  # nothing stands before the first period
    ("", "yes", ""),
    (" ", "yes", ""),
    (" no", "no", "no"),
    (" Yes ", "yes", "yes"),
    ("No\n", "yes", "no"),  # words end at spaces alone
    ("\nno", "yes", "no"),
    ("No\nThere is none", "yes", ""),
    ("yes\tno", "yes", ""),
    ("No, there is not", "no", ""),
    ("No, there is no dog in the image.", "no", ""),
    ("Yes, there is a dog.", "yes", ""),
    ("Yes, but not a dog", "no", ""),
    ("there is no dog, yes", "no", ""),
    ("There is a dog. No cat though.", "yes", ""),
    ("There is not a dog. Yes.", "no", ""),
    ("Not sure", "yes", ""),
    ("I am not sure", "no", ""),
    ("There isn't", "yes", ""),
    ("There is none", "yes", ""),
    ("Nothing", "yes", ""),
    ("nope", "yes", ""),
    ("no!", "yes", ""),
    ("(no)", "yes", ""),
    ("n,o", "no", ""),  # commas are dropped before words are told apart
    ("no,no", "yes", ""),
    ("No , really", "no", ""),
    ("non", "yes", ""),
    ("n\u00e3o", "yes", ""),
    ("\u5426", "yes", ""),
    ("ｎｏ", "yes", ""),  # full-width letters are others
    ("no\u00a0dog", "yes", ""),  # so is a no-break space
    ("The answer is no", "no", ""),
    ("The answer is: no", "no", ""),
    ("1.no", "yes", ""),
]


@pytest.mark.parametrize(("prediction", "official", "lmms_eval"), READINGS)
def test_answers_are_read_as_the_authors_and_lmms_eval_do(prediction: str, official: str, lmms_eval: str) -> None:
    for right in ("yes", "no"):
        case: Case = {"prediction": prediction, "references": [right]}
        assert pope.read_answer(case) == official
        assert pope.read_answer(case, "lmms-eval") == lmms_eval
        assert pope.score(case) == float(official == right)
        assert pope.score(case, "lmms-eval") == float(lmms_eval == right)


def test_references_are_yes_or_no_in_any_case() -> None:
    assert pope.score({"prediction": "yes", "references": ["Yes "]}) == 1
    with pytest.raises(UserError, match="'maybe' is neither yes nor no"):
        pope.score({"prediction": "yes", "references": ["maybe"]})


def scored(answers: list[tuple[str, str, str]], scoring: Scoring = "official") -> list[ScoredCase]:
    cases: list[Case] = [
        {"category": split, "references": [right], "prediction": said} for split, right, said in answers
    ]
    return score_cases(pope, cases, scoring)


TABLE = [
    # random: 2 hits, 1 false alarm, 1 correct rejection
    ("random", "yes", "yes"),
    ("random", "yes", "Yes, there is"),
    ("random", "no", "yes"),
    ("random", "no", "no"),
    # adversarial: 1 hit, 1 miss
    ("adversarial", "yes", "yes"),
    ("adversarial", "yes", "no"),
]


def test_totals_are_those_of_each_split_and_their_mean() -> None:
    numbers = pope.aggregate(scored(TABLE))
    random = {"precision": 2 / 3, "recall": 1, "f1": 4 / 5, "accuracy": 3 / 4, "yes_ratio": 3 / 4}
    adversarial = {"precision": 1, "recall": 1 / 2, "f1": 2 / 3, "accuracy": 1 / 2, "yes_ratio": 1 / 2}
    expected = {f"random/{name}": value for name, value in random.items()}
    expected |= {f"adversarial/{name}": value for name, value in adversarial.items()}
    expected |= {name: (random[name] + adversarial[name]) / 2 for name in random}
    assert numbers == pytest.approx(expected)
    assert pope.METRIC in numbers


def test_lmms_eval_counts_all_cases_together_and_answers_it_cannot_read_as_no_miss() -> None:
    """Hits 2, false alarms 1, misses 1 (the literal no); "Yes, there is" is none of them but is not right either."""
    numbers = pope.aggregate(scored(TABLE, "lmms-eval"), "lmms-eval")
    overall = {name: numbers[name] for name in ("precision", "recall", "f1", "accuracy")}
    assert overall == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "accuracy": 3 / 6})
    assert numbers["yes_ratio"] == pytest.approx(4 / 6)  # of the references
    assert numbers["random/recall"] == 1
    assert numbers["random/accuracy"] == pytest.approx(2 / 4)


def test_ratios_with_nothing_below_them_are_zero() -> None:
    never_yes = pope.aggregate(scored([("popular", "no", "no"), ("popular", "no", "no")]))
    assert never_yes["accuracy"] == 1
    assert never_yes["precision"] == never_yes["recall"] == never_yes["f1"] == never_yes["yes_ratio"] == 0
    always_wrong = pope.aggregate(scored([("popular", "no", "yes"), ("popular", "yes", "no")]))
    assert set(always_wrong.values()) == {0, 0.5}  # half of the answers are yes


def test_a_case_without_a_split_is_named() -> None:
    cases: list[Case] = [{"prediction": "yes", "references": ["yes"]}]
    with pytest.raises(UserError, match="1 of 1 cases have no 'category'"):
        pope.aggregate(score_cases(pope, cases))


def test_a_case_without_an_answer_is_a_miss_or_a_false_alarm() -> None:
    """Unlike an empty answer, which reads as yes."""
    cases: list[Case] = [
        {"prediction": "yes", "references": ["yes"], "category": "random"},
        {"prediction": "", "references": ["yes"], "category": "random", "error": "the image file is empty"},
        {"prediction": "", "references": ["no"], "category": "random", "error": "the image file is empty"},
    ]
    totals = pope.aggregate(score_cases(pope, cases))
    assert (totals["accuracy"], totals["precision"], totals["recall"]) == pytest.approx((1 / 3, 1 / 2, 1 / 2))
