"""From scored answers to result rows: the rule's numbers with their counts, standard errors and intervals. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmkit.evals.records import SampleRecord
from vlmkit.evals.scoring.case import ScoredCase, Scoring, ScoringRule
from vlmkit.evals.statistics import clustered_mean, interval, numbered, recounted, resampled_means, resamples
from vlmkit.runs import ResultRow

if TYPE_CHECKING:
    from vlmkit.evals.benchmarks import Benchmark

_PROBES = 3
"""Resamples on which a number is compared with the mean score, to find out whether it is that mean."""


@dataclass(frozen=True)
class Estimate:
    """One number of a benchmark. ``replicates`` are its values on the resamples of the images, nan where one has none.

    Records of the same questions are resampled alike: the replicates of two runs may be subtracted.
    """

    value: float
    stderr: float
    replicates: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval."""
        return interval(self.replicates)


def rows_of(
    benchmark: Benchmark, records: Sequence[SampleRecord], limit: int | None, model: Mapping[str, Any]
) -> list[ResultRow]:
    """For each family the benchmark's own number, and the rule's other numbers as rows of no family.

    ``model`` has the fields of a result row that say what was evaluated.
    """
    families: dict[str, list[SampleRecord]] = {}
    for record in records:
        families.setdefault(record.family, []).append(record)
    rows = []
    for family, of_family in families.items():
        for metric, estimate in estimates(benchmark.rule, of_family, benchmark.scoring).items():
            own = metric == benchmark.rule.METRIC
            low, high = estimate.interval
            rows.append(
                ResultRow(
                    benchmark=benchmark.name,
                    family=family if own else "",
                    metric=metric,
                    value=estimate.value,
                    num_samples=len(of_family),
                    stderr=estimate.stderr,
                    ci_low=low,
                    ci_high=high,
                    num_errors=sum(bool(record.error) for record in of_family),
                    data_revision=benchmark.samples.fingerprint,
                    scoring=benchmark.scoring,
                    limit=limit,
                    variant="" if own or family == benchmark.name else family,
                    **model,
                )
            )
    return rows


def estimates(rule: ScoringRule, records: Sequence[SampleRecord], scoring: Scoring) -> dict[str, Estimate]:
    """The rule's numbers by name. Questions about the same images are not independent, so images are resampled.

    The standard error of a mean of scores is :func:`~vlmkit.evals.statistics.clustered_mean`'s; of another number (F1,
    totals, groups) it is the deviation over the bootstrap, on whose resamples the rule counts anew.
    """
    cases = [record.case() for record in records]
    scores = np.array([case["score"] for case in cases])
    clusters = numbered([record.group for record in records])
    draws = resamples(clusters)
    means = resampled_means(scores, clusters, draws)

    def count(items: Sequence[tuple[int, int]]) -> Mapping[str, float]:
        return rule.aggregate([_copy(cases[item], times) for item, times in items], scoring)

    numbers, (mean, stderr) = rule.aggregate(cases, scoring), clustered_mean(scores, clusters)
    if not clusters.any():
        # One image alone says nothing about the spread: the number may be anything.
        return {name: Estimate(value, stderr, np.array([0.0, 1.0])) for name, value in numbers.items()}
    probes = recounted(count, clusters, draws[:_PROBES])
    is_mean = {
        name: np.isclose(value, mean) and np.allclose(probes.get(name, np.nan), means[:_PROBES])
        for name, value in numbers.items()
    }
    counted = {} if all(is_mean.values()) else recounted(count, clusters, draws)
    return {
        name: Estimate(value, stderr, means) if is_mean[name] else _counted(value, counted[name])
        for name, value in numbers.items()
    }


def _counted(value: float, replicates: np.ndarray) -> Estimate:
    return Estimate(value, float(np.nanstd(replicates, ddof=1)), replicates)


def _copy(case: ScoredCase, times: int) -> ScoredCase:
    """The case as the member of a group of its own, if its group has been drawn before."""
    if not times or not case.get("question_id"):
        return case
    return {**case, "question_id": f"{case['question_id']} (drawn again, {times})"}
