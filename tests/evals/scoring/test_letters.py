"""References of multiple choice: the letter, or the text of one option."""

from __future__ import annotations

import pytest

from vlmkit.errors import UserError
from vlmkit.evals.scoring.letters import is_right, options


@pytest.mark.parametrize(
    ("reference", "choices", "letter"),
    [
        ("B", ["cat", "dog"], "B"),
        ("b", ["cat", "dog"], "B"),
        (" B ", ["cat", "dog"], "B"),
        ("dog", ["cat", "dog"], "B"),
        ("Dog", ["cat", " dog "], "B"),
        ("A", ["B", "A"], "A"),  # a letter before a text
        ("C", ["C", "D"], "A"),  # no letter of an option: a text
    ],
)
def test_a_reference_is_the_letter_or_the_text_of_an_option(reference: str, choices: list[str], letter: str) -> None:
    case = {"prediction": "", "references": [reference], "choices": choices}
    assert [name for name in options(case) if is_right(name, case)] == [letter]  # type: ignore[arg-type]


def test_without_choices_every_letter_is_an_option() -> None:
    assert is_right("F", {"prediction": "", "references": ["F"]})


def test_several_references_are_all_right() -> None:
    case = {"prediction": "", "references": ["A", "dog"], "choices": ["cat", "dog", "cow"]}
    assert [is_right(name, case) for name in "ABC"] == [True, True, False]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reference", "choices"), [("C", ["cat", "dog"]), ("cow", ["cat", "dog"]), ("cat", ["cat", "cat"]), ("", ["cat"])]
)
def test_a_reference_that_names_no_option_or_two_is_refused(reference: str, choices: list[str]) -> None:
    with pytest.raises(UserError, match="neither the letter nor the text of exactly one option"):
        is_right("A", {"prediction": "", "references": [reference], "choices": choices})
