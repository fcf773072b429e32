"""The steps that the three VQA benchmarks share, against the official definitions."""

from __future__ import annotations

import pytest

from vlmkit.errors import UserError
from vlmkit.evals.scoring import textvqa, vizwiz_vqa, vqav2
from vlmkit.evals.scoring.vqa_accuracy import CONTRACTIONS, agreement


@pytest.mark.parametrize(
    ("people", "equal", "expected"),
    [
        (10, 0, 0.0),
        (10, 1, 0.3),  # nine choices of nine people keep the one: 9 * 1/3 / 10
        (10, 2, 0.6),  # eight keep both, two keep one: (8 * 2/3 + 2 * 1/3) / 10
        (10, 3, 0.9),  # seven keep three, three keep two: (7 + 3 * 2/3) / 10
        (10, 4, 1.0),
        (10, 10, 1.0),
        (5, 3, 0.8),  # (2 + 3 * 2/3) / 5
        (4, 4, 1.0),
        (3, 3, 2 / 3),
        (3, 2, 4 / 9),  # (2 * 1/3 + 2/3) / 3
        (2, 2, 1 / 3),
        (2, 1, 1 / 6),
        (1, 1, 0.0),  # no other person is left
    ],
)
def test_credit_by_the_number_of_people_who_agree(people: int, equal: int, expected: float) -> None:
    assert agreement("red", ["red"] * equal + ["blue"] * (people - equal)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spelling", "contraction"),
    [
        ("dont", "don't"),
        ("yall'll", "y'all'll"),
        ("y'allll", "y'all'll"),
        ("y'all'dve", "y'all'd've"),
        ("oclock", "o'clock"),
        ("maam", "ma'am"),
        ("'ows'at", "'ow's'at"),
        ("twas", "'twas"),
        ("mightntve", None),  # two apostrophes short
        ("lets", None),  # the official table has only let's for let's
        ("shes", None),
        ("its", None),
        ("well", None),
        ("somebody'd", "somebodyd"),  # the wrong way round in the official table
    ],
)
def test_contractions(spelling: str, contraction: str | None) -> None:
    assert CONTRACTIONS.get(spelling) == contraction


def test_the_table_has_every_entry_of_the_official_one_that_changes_a_lower_case_word() -> None:
    assert len(CONTRACTIONS) == 120 - 6  # less let's and she's, which map to themselves, and four that begin with "I"


@pytest.mark.parametrize("rule", [vqav2, vizwiz_vqa, textvqa])
def test_without_references_a_case_is_refused(rule) -> None:
    with pytest.raises(UserError, match="references"):
        rule.score({"prediction": "red", "references": []})


@pytest.mark.parametrize("rule", [vqav2, vizwiz_vqa])
def test_means_by_answer_type(rule) -> None:
    kinds = [("yes/no", 1.0), ("number", 0.3), ("yes/no", 0.0), ("other", 0.6), ("other", 0.9)]
    scored = [{"prediction": "", "references": ["x"], "category": kind, "score": worth} for kind, worth in kinds]
    numbers = rule.aggregate(scored)
    assert numbers == pytest.approx({"vqa_accuracy": 0.56, "yes/no": 0.5, "number": 0.3, "other": 0.75})
    assert rule.METRIC in numbers


def test_without_categories_there_is_one_number() -> None:
    scored = [{"prediction": "", "references": ["x"], "score": 1.0}]
    scored.append({"prediction": "", "references": ["x"], "score": 0.3, "category": ""})
    for rule in (vqav2, vizwiz_vqa, textvqa):
        assert rule.aggregate(scored) == pytest.approx({"vqa_accuracy": 0.65})
