"""MME against readings and sums worked out by hand from its eval tool and lmms-eval's tasks/mme."""

from __future__ import annotations

import pytest

from vlmkit.errors import UserError
from vlmkit.evals.scoring import mme
from vlmkit.evals.scoring.case import Case, ScoredCase, score_cases

# prediction, as the eval tool reads it, as lmms-eval reads it
READINGS = [
    ("Yes", "yes", "yes"),
    ("No", "no", "no"),
    ("yes", "yes", "yes"),
    ("no", "no", "no"),
    ("YES", "yes", "yes"),
    ("NO", "no", "no"),
    ("Yes.", "yes", "yes"),
    ("No.", "no", "no"),
    ("No\n", "no", "no"),
    ("Yes, there is a dog.", "yes", "yes"),
    ("No, there is not", "no", "no"),
    ("Not sure", "no", "no"),
    ("nothing", "no", "no"),
    ("None", "no", "no"),
    ("Now", "no", "no"),
    ("know", "no", "no"),
    ("Unknown", "", ""),
    ("Yesterday", "yes", "yes"),
    ("eyes", "yes", "yes"),
    ("Dyes", "yes", "yes"),
    ("y", "", "yes"),
    ("N", "", "no"),
    ("Y.", "", "yes"),
    ("n ", "", "no"),
    ("x", "", ""),
    ("", "", ""),
    (" ", "", ""),
    (".", "", ""),
    (" yes", "yes", "yes"),
    ("  yes", "", "yes"),
    ("\n\nNo", "no", "no"),
    ("\n\n\nNo", "", "no"),
    ("  no", "no", "no"),
    ("...No", "", "no"),
    ("y.e.s", "", "yes"),
    ("(no)", "no", "no"),
    ("(yes)", "yes", "yes"),
    ('"Yes"', "yes", "yes"),
    ('"yes', "yes", "yes"),
    ("**Yes**", "", ""),
    ("I am not sure", "", ""),
    ("There is no dog, yes", "", ""),
    ("A: No", "", ""),
    ("A:no", "no", "no"),
    ("nyes", "yes", "yes"),
    ("n o", "", ""),
    ("oui", "", ""),
    ("ｙｅｓ", "", ""),
    ("不", "", ""),
    ("Ye s", "", ""),
]


@pytest.mark.parametrize(("prediction", "official", "lmms_eval"), READINGS)
def test_answers_are_read_from_their_first_four_characters(prediction: str, official: str, lmms_eval: str) -> None:
    for right in ("Yes", "No"):
        case: Case = {"prediction": prediction, "references": [right]}
        assert mme.read_answer(case) == official
        assert mme.read_answer(case, "lmms-eval") == lmms_eval
        assert mme.score(case) == float(official == right.lower())
        assert mme.score(case, "lmms-eval") == float(lmms_eval == right.lower())


def scored(rights: dict[tuple[str, str], str]) -> list[ScoredCase]:
    """Cases from (subtask, image) and, for each question about it, r (right) or w (wrong)."""
    cases: list[Case] = [
        {"category": subtask, "question_id": image, "references": ["Yes"], "prediction": {"r": "Yes", "w": "No"}[mark]}
        for (subtask, image), marks in rights.items()
        for mark in marks
    ]
    return score_cases(mme, cases)


def test_a_subtask_has_the_share_of_questions_and_that_of_images() -> None:
    """Six of eight questions are right, both of them for two of four images: 75 + 50 of MME's 200."""
    numbers = mme.aggregate(
        scored({("count", "1"): "rr", ("count", "2"): "rw", ("count", "3"): "wr", ("count", "4"): "rr"})
    )
    assert numbers == pytest.approx(
        {"count/accuracy": 0.75, "count/accuracy_plus": 0.5, "perception": 0.625, "total": 0.625}
    )
    assert mme.METRIC in numbers


def test_the_questions_of_an_image_need_not_be_neighbours() -> None:
    apart = scored({("OCR", "1"): "r", ("OCR", "2"): "rw"}) + scored({("OCR", "1"): "r"})
    assert mme.aggregate(apart)["OCR/accuracy_plus"] == 0.5


def test_images_of_different_subtasks_may_share_an_id() -> None:
    numbers = mme.aggregate(scored({("color", "1"): "rr", ("position", "1"): "ww"}))
    assert (numbers["color/accuracy_plus"], numbers["position/accuracy_plus"]) == (1, 0)


def test_perception_and_cognition_are_shares_of_2000_and_800_and_the_total_of_2800() -> None:
    """Every perception subtask has 100 + 100 but existence, 50 + 0; of cognition only code reasoning has 200."""
    rights = {(subtask, "1"): "rr" for subtask in mme.PERCEPTION} | {(subtask, "1"): "ww" for subtask in mme.COGNITION}
    rights |= {("existence", "1"): "rw", ("code_reasoning", "1"): "rr"}
    numbers = mme.aggregate(scored(rights))
    assert numbers["perception"] == pytest.approx((9 * 200 + 50) / 2000)
    assert numbers["cognition"] == pytest.approx(200 / 800)
    assert numbers["total"] == pytest.approx((9 * 200 + 50 + 200) / 2800)


def test_subtasks_that_are_not_there_take_their_maximum_along() -> None:
    numbers = mme.aggregate(scored({("scene", "1"): "rr", ("text_translation", "1"): "ww"}))
    assert (numbers["perception"], numbers["cognition"], numbers["total"]) == (1, 0, 0.5)


def test_an_image_with_a_question_missing_counts_for_accuracy_alone() -> None:
    numbers = mme.aggregate(scored({("posters", "1"): "rr", ("posters", "2"): "r"}))
    assert (numbers["posters/accuracy"], numbers["posters/accuracy_plus"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"category": "counting", "question_id": "1"}, "no subtask counting"),
        ({"question_id": "1"}, "1 of 1 cases have no 'category'"),
        ({"category": "count"}, "1 of 1 cases have no 'question_id'"),
    ],
)
def test_cases_that_cannot_be_totalled_are_named(case: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mme.aggregate([{"prediction": "Yes", "references": ["Yes"], "score": 1.0, **case}])  # type: ignore[typeddict-item]


def test_more_than_two_questions_about_an_image_are_refused() -> None:
    with pytest.raises(UserError, match="image 7 of landmark has 3 questions"):
        mme.aggregate(scored({("landmark", "7"): "rrr"}))
