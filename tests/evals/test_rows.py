"""From records to rows: counts, errors and intervals, of means and of numbers that are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlmkit.evals.benchmarks import Benchmark
from vlmkit.evals.records import SampleRecord
from vlmkit.evals.rows import estimates, rows_of
from vlmkit.evals.scoring import exact_match
from vlmkit.evals.scoring.case import ScoredCase, Scoring, ScoringRule, mean_score


def records(scores: Sequence[Sequence[float]], family: str = "all") -> list[SampleRecord]:
    """Questions about images, by the scores of each image's questions, which are one question_id."""
    return [
        SampleRecord(f"{image}/{number}", family, "?", "", "", ("a",), score, (), "", f"q{image}", f"image{image}")
        for image, of_image in enumerate(scores)
        for number, score in enumerate(of_image)
    ]


def pairs(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> Mapping[str, float]:
    """As MME: the share of questions, and that of the images whose two questions are both right."""
    images: dict[str, list[float]] = {}
    for case in scored:
        images.setdefault(case["question_id"], []).append(case["score"])
    assert {len(of_image) for of_image in images.values()} == {2}, "an image that is drawn twice is two images"
    return {"both": float(np.mean([min(of_image) for of_image in images.values()])), "accuracy": mean_score(scored)}


PAIRS: Any = SimpleNamespace(VARIANTS=("official",), METRIC="both", aggregate=pairs)


def test_the_share_of_right_groups_has_the_error_of_a_share_of_groups() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random((200, 2)) < 0.7).astype(float)
    rule: ScoringRule = PAIRS
    found = estimates(rule, records(scores.tolist()), "official")
    share = scores.min(axis=1).mean()
    assert found["both"].value == share
    assert found["both"].stderr == pytest.approx(np.sqrt(share * (1 - share) / 199), rel=0.06)
    low, high = found["both"].interval
    assert (low, high) == pytest.approx((share - 0.068, share + 0.068), abs=0.012)
    assert found["accuracy"].stderr == pytest.approx(scores.mean(axis=1).std(ddof=1) / np.sqrt(200))


def test_a_mean_is_not_recounted_on_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def aggregate(scored: Sequence[ScoredCase], scoring: Scoring = "official") -> Mapping[str, float]:
        calls.append(len(scored))
        return {"mean": mean_score(scored)}

    rule: Any = SimpleNamespace(METRIC="mean", aggregate=aggregate)
    assert estimates(rule, records([[0.0, 1.0], [1.0]] * 50), "official")["mean"].value == pytest.approx(2 / 3)
    assert len(calls) < 10


def test_one_image_says_nothing_of_the_spread() -> None:
    (found,) = estimates(exact_match, records([[1.0, 1.0, 1.0]]), "official").values()
    assert (found.value, found.stderr) == (1.0, 0.5)
    low, high = found.interval
    assert low < 0.05 and high > 0.95


def test_the_rules_own_number_is_the_familys_and_the_others_have_none() -> None:
    source: Any = SimpleNamespace(fingerprint="abc")
    benchmark = Benchmark("pairs", source, lambda sample: [], PAIRS)
    given = [*records([[1.0, 1.0], [1.0, 0.0]], "pairs"), *records([[1.0, 1.0], [0.0, 1.0]], "hard")]
    rows = rows_of(benchmark, given, 7, {"llm": "nano"})
    assert [(row.family, row.metric, row.variant, row.value, row.num_samples) for row in rows] == [
        ("pairs", "both", "", 0.5, 4),
        ("", "accuracy", "", 0.75, 4),
        ("hard", "both", "", 0.5, 4),
        ("", "accuracy", "hard", 0.75, 4),
    ]
    assert all(row.ci_low is not None and row.ci_low <= row.value <= (row.ci_high or 0) for row in rows)
    assert {(row.limit, row.llm, row.data_revision, row.num_errors) for row in rows} == {(7, "nano", "abc", 0)}
