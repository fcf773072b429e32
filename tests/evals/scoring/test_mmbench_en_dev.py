"""MMBench against readings worked out by hand from VLMEvalKit's matching_util.py and lmms-eval's tasks/mmbench."""

from __future__ import annotations

import pytest

from vlmkit.errors import UserError
from vlmkit.evals.scoring import mmbench_en_dev
from vlmkit.evals.scoring.case import Case, ScoredCase, score_cases

CHOICES = ["a teddy bear", "rabbit", "black cat", "dog"]  # 30 characters: texts are matched in at most 60

# prediction, as VLMEvalKit reads it, as lmms-eval reads it before it asks a judge
READINGS = [
    ("A", "A", "A"),
    ("B", "B", "B"),
    ("C", "C", "C"),
    ("D", "D", "D"),
    ("a", "", ""),
    ("b", "", ""),
    ("E", "", "E"),
    ("Z", "", ""),
    ("B.", "B", "B"),
    ("(B)", "B", "B"),
    ("B)", "B", "B"),
    ("(B).", "B", "B"),
    ("[B]", "B", ""),
    ("{B}", "B", ""),
    ("**B**", "B", ""),
    ("#B", "B", ""),
    ("B!", "B", ""),
    ("B;", "B", ""),
    ("B?", "", ""),
    ('"B"', "", ""),
    (":B", "B", "B"),
    (" B\n", "B", "B"),
    ("B. rabbit", "B", "B"),
    ("B: rabbit", "B", "B"),
    ("B,rabbit", "B", "B"),  # lmms-eval: by the text
    ("A. rabbit", "A", "A"),  # the letter goes before the text
    ("The answer is B", "B", "B"),
    ("The answer is B.", "B", "B"),
    ("The answer is: (B)", "B", "B"),
    ("B is the answer here", "", "B"),  # first of five words
    ("I think it is B because", "B", "B"),
    ("B because it has long white ears", "", "B"),
    ("A dog", "A", "A"),  # an article is a letter in a short answer
    ("A black cat sits", "A", "C"),
    ("A black cat sits there", "C", "C"),
    ("A very big dog", "A", "D"),
    ("A or B", "", ""),
    ("A, B", "", "B"),  # in lmms-eval "A," is not the bare letter
    ("A. B. C.", "", ""),
    ("AB", "", ""),
    ("rabbit", "B", "B"),
    ("Rabbit.", "B", "B"),
    ("a RABBIT", "B", "B"),
    ("rabbits", "B", "B"),
    ("rabbit and dog", "", ""),
    ("a black cat", "C", "C"),
    ("the cat", "", ""),
    ("Spider", "", ""),
    ("", "", ""),
    (" ", "", ""),
    (".", "", ""),
    ("Z rabbit", "", "B"),
    ("Z or B", "B", "B"),
    ("Cannot determine the answer", "", ""),
    ("Cannot determine the answer B", "", "B"),
    ("I can't process this file. B", "", "B"),
    ("Failed to obtain answer via API B", "", ""),
    ("Failed to obtain answer via API rabbit", "B", "B"),
    ("It is so " + "very " * 9 + "rabbit", "B", "B"),  # 9 + 45 + 6 characters
    ("It is so " + "very " * 9 + "rabbit.", "", "B"),
    ("Ｂ", "", ""),
    ("兔子", "", ""),
    ("答案是 B", "B", "B"),
    ("B\u3002", "", ""),
]


@pytest.mark.parametrize(("prediction", "official", "lmms_eval"), READINGS)
def test_options_are_matched_exactly(prediction: str, official: str, lmms_eval: str) -> None:
    for right in "ABCD":
        case: Case = {"prediction": prediction, "references": [right], "choices": CHOICES}
        assert mmbench_en_dev.read_answer(case) == official
        assert mmbench_en_dev.read_answer(case, "lmms-eval") == lmms_eval
        assert mmbench_en_dev.score(case) == float(official == right)
        assert mmbench_en_dev.score(case, "lmms-eval") == float(lmms_eval == right)


def test_letters_are_those_of_the_options_shown() -> None:
    two: Case = {"prediction": "A or C", "references": ["A"], "choices": ["yes", "no"]}
    assert mmbench_en_dev.read_answer(two) == "A"
    assert mmbench_en_dev.read_answer(two, "lmms-eval") == ""


def test_without_choices_letters_are_read_and_texts_are_not() -> None:
    assert mmbench_en_dev.score({"prediction": "The answer is B", "references": ["B"]}) == 1
    assert mmbench_en_dev.read_answer({"prediction": "rabbit", "references": ["B"]}) == ""


def scored(answers: list[tuple[str, str, str]]) -> list[ScoredCase]:
    """From (question, right letter of the rotation, prediction)."""
    cases: list[Case] = [
        {"question_id": question, "references": [right], "prediction": said, "choices": ["x-ray", "yacht"]}
        for question, right, said in answers
    ]
    return score_cases(mmbench_en_dev, cases)


def test_a_question_counts_if_it_is_right_in_every_rotation() -> None:
    """One question right twice, one right once (always A), one wrong twice; the rotations come after the originals."""
    answers = [("1", "A", "A"), ("2", "A", "A"), ("3", "B", "A"), ("1", "B", "yacht"), ("2", "B", "A"), ("3", "A", "")]
    assert mmbench_en_dev.aggregate(scored(answers)) == pytest.approx(
        {"circular_accuracy": 1 / 3, "vanilla_accuracy": 3 / 6}
    )


def test_a_question_is_judged_by_the_rotations_that_are_there() -> None:
    answers = [("1", "A", "A"), ("2", "A", "A"), ("2", "B", "A"), ("3", "B", "C")]
    numbers = mmbench_en_dev.aggregate(scored(answers))
    assert numbers[mmbench_en_dev.METRIC] == pytest.approx(1 / 3)
    assert numbers["vanilla_accuracy"] == pytest.approx(2 / 4)


def test_a_case_that_belongs_to_no_question_is_named() -> None:
    with pytest.raises(UserError, match="1 of 2 cases have no 'question_id'"):
        mmbench_en_dev.aggregate(
            [*scored([("1", "A", "A")]), {"prediction": "A", "references": ["A"], "score": 1.0}]  # type: ignore[list-item]
        )
