"""Means over named sets of benchmarks: the scores that the law of a family is fitted to. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import sha256
from typing import cast

from vlmkit import registry
from vlmkit.evals.scoring import rule
from vlmkit.evals.scoring.case import Scoring
from vlmkit.runs import ResultRow

METRIC = "mean"


def family_means(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """A row for each named set, number of visual tokens, limit and scoring variant for which ``rows`` of one model have
    all benchmarks of the set; a later row of a benchmark counts instead of an earlier one.

    A benchmark that has one rule only stands in the mean of every variant. The benchmarks weigh alike, and their errors
    are independent: the standard error is the root of the summed squares over their number, the interval 1.96 of it.
    """
    found: dict[tuple[int | None, int | None, Scoring], dict[str, ResultRow]] = {}
    for row in rows:
        if row.llm and row.family == row.benchmark and not row.benchmarks:
            found.setdefault((row.visual_tokens, row.limit, cast(Scoring, row.scoring)), {})[row.benchmark] = row
    means = []
    for tokens, limit, scoring in found:
        for members in registry.BENCHMARK_SETS.values():
            scored = [
                found.get((tokens, limit, variant_of(name, scoring)), {}).get(name) for name in members.benchmarks
            ]
            complete = [row for row in scored if row is not None]
            if len(complete) == len(scored) and any(row.scoring == scoring for row in complete):
                means.append(_mean(members, scoring, complete))
    return means


def variant_of(benchmark: str, scoring: Scoring) -> Scoring:
    """How a benchmark is scored where ``scoring`` is asked for: officially, if its rule has no such variant."""
    return scoring if scoring in rule(benchmark).VARIANTS else "official"


def _mean(members: registry.BenchmarkSet, scoring: str, rows: list[ResultRow]) -> ResultRow:
    model, count = rows[0], len(rows)
    value = math.fsum(row.value for row in rows) / count
    stderr = math.sqrt(math.fsum(row.stderr**2 for row in rows)) / count
    revisions = "\n".join(f"{row.benchmark} {row.data_revision}" for row in rows)
    return ResultRow(
        benchmark=members.name,
        family=members.name,
        metric=METRIC,
        value=value,
        num_samples=sum(row.num_samples for row in rows),
        stderr=stderr,
        ci_low=max(0.0, value - 1.96 * stderr),
        ci_high=min(1.0, value + 1.96 * stderr),
        num_errors=sum(row.num_errors for row in rows),
        data_revision=sha256(revisions.encode()).hexdigest(),
        scoring=scoring,
        limit=model.limit,
        benchmarks=",".join(members.benchmarks),
        llm=model.llm,
        llm_params=model.llm_params,
        llm_params_non_embedding=model.llm_params_non_embedding,
        total_params=model.total_params,
        visual_tokens=model.visual_tokens,
        compressor=model.compressor,
        query=model.query,
        seed=model.seed,
    )
