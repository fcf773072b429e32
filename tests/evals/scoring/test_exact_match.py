"""The exact-match rule, case by case."""

from __future__ import annotations

import pytest

from vlmkit.evals.scoring.case import ScoredCase
from vlmkit.evals.scoring.exact_match import aggregate, score


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("red", ["red"], 1.0),
        (" Red ", ["red"], 1.0),
        ("Red.", ["red"], 1.0),
        ("red .", ["red"], 1.0),
        ("red..", ["red"], 0.0),
        ("a  red\n square", ["a red square"], 1.0),
        ("red", ["RED."], 1.0),
        ("red square", ["red"], 0.0),
        ("re d", ["red"], 0.0),
        ("crimson", ["red", "crimson"], 1.0),
        ("blue", ["red", "crimson"], 0.0),
        ("3.5", ["3.5"], 1.0),
        ("35", ["3.5"], 0.0),
        ("-3", ["3"], 0.0),
        ("", ["red"], 0.0),
        (".", [""], 1.0),
        ("ÉTÉ", ["été"], 1.0),
        ("yes!", ["yes"], 0.0),
    ],
)
def test_score(prediction: str, references: list[str], expected: float) -> None:
    assert score({"prediction": prediction, "references": references}) == expected


def test_aggregate_averages() -> None:
    scored: list[ScoredCase] = [{"prediction": "", "references": [""], "score": float(right)} for right in (1, 1, 0, 1)]
    assert aggregate(scored) == {"exact_match": 0.75}
