"""Means over named sets: which rows make one, and what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vlmkit import registry
from vlmkit.evals import families
from vlmkit.evals.families import family_means
from vlmkit.runs import ResultRow

OCR = registry.BENCHMARK_SETS["ocr"].benchmarks


@pytest.fixture(autouse=True)
def variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only docvqa is scored in two ways."""
    monkeypatch.setattr(families, "variant_of", lambda name, scoring: scoring if name == "docvqa" else "official")


def row(benchmark: str, value: float = 0.5, **more: Any) -> ResultRow:
    fields: dict[str, Any] = {"llm": "nano", "llm_params": 7, "visual_tokens": 4, "seed": 3, "num_errors": 1}
    whole = ResultRow(benchmark, benchmark, "accuracy", value, 100, 0.04, f"{benchmark}@1", "official", **fields)
    return replace(whole, **more)


def test_a_mean_needs_every_benchmark_of_its_set() -> None:
    rows = [row(name, number / 10) for number, name in enumerate(OCR)]
    assert family_means(rows[1:]) == []
    (mean,) = family_means(rows)
    assert (mean.benchmark, mean.family, mean.metric, mean.benchmarks) == ("ocr", "ocr", "mean", ",".join(OCR))
    assert mean.value == pytest.approx(sum(range(len(OCR))) / 10 / len(OCR))
    assert mean.stderr == pytest.approx(0.04 / len(OCR) ** 0.5), "independent errors of equal size"
    assert mean.ci_low == pytest.approx(mean.value - 1.96 * mean.stderr)
    assert (mean.num_samples, mean.num_errors) == (100 * len(OCR), len(OCR))
    assert (mean.llm, mean.llm_params, mean.visual_tokens, mean.seed) == ("nano", 7, 4, 3)


@pytest.mark.parametrize("change", [{"limit": 10}, {"visual_tokens": 16}, {"scoring": "lmms-eval"}, {"llm": None}])
def test_rows_that_were_measured_otherwise_make_no_mean(change: dict[str, Any]) -> None:
    first, *others = OCR
    assert family_means([row(first, **change), *map(row, others)]) == []


def test_each_limit_and_count_has_its_mean_and_data_their_revision() -> None:
    rows = [row(name, **change) for change in ({}, {"limit": 9}, {"visual_tokens": 1}) for name in OCR]
    assert [(mean.limit, mean.visual_tokens) for mean in family_means(rows)] == [(None, 4), (9, 4), (None, 1)]
    (before,) = family_means(map(row, OCR))
    (after,) = family_means([*map(row, OCR), row(OCR[0], 0.9, data_revision="2")])
    assert after.value == pytest.approx(before.value + 0.4 / len(OCR)), "the later row counts"
    assert after.data_revision != before.data_revision


def test_what_has_one_rule_stands_in_the_mean_of_every_variant() -> None:
    other = row("docvqa", 0.9, scoring="lmms-eval")
    official, lmms_eval = family_means([*map(row, OCR), other])
    assert (official.scoring, lmms_eval.scoring) == ("official", "lmms-eval")
    assert lmms_eval.value == pytest.approx(official.value + 0.4 / len(OCR))
