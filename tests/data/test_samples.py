"""The sample types."""

from __future__ import annotations

import pytest

from vlmkit.data.samples import Turn


def test_references_default_to_the_answer() -> None:
    assert Turn("how many", "two").references == ("two",)
    assert Turn("how many", "two", references=("two", "2")).references == ("two", "2")


def test_samples_are_values() -> None:
    turn = Turn("q", "a", "count")
    assert turn == Turn("q", "a", "count")
    with pytest.raises(AttributeError):
        turn.answer = "b"  # type: ignore[misc]
