"""What evaluations of every kind of run take and give: settings, and a report of rows with a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmkit.evals.scoring.case import Scoring
from vlmkit.runs import ResultRow


@dataclass(frozen=True)
class EvalSettings:
    """What to evaluate on: sources of a tower's tasks (None: the embedded world), samples at most, batch, device, a
    VLM's numbers of visual tokens (none: the most that it serves), whose rules score its answers, where the results of
    a model go that is no run (None: to a directory of its name in ``runs``), and the folder of its benchmarks' data
    (None: the cache)."""

    train_data: str | None = None
    test_data: str | None = None
    limit: int | None = None
    batch_size: int = 128
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tokens: tuple[int, ...] = ()
    scoring: Scoring = "official"
    out: Path | None = None
    data_dir: Path | None = None


@dataclass(frozen=True)
class Report:
    """The rows of one task on one run, and the same as a table for people."""

    title: str
    rows: list[ResultRow]
    columns: list[str]
    table: list[tuple[Any, ...]]
    notes: list[str] = field(default_factory=list)


def score_table(rows: Sequence[ResultRow]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns and lines of a table of scores: the number, twice its standard error, its 95 % interval, its count."""
    columns = ["family", "metric", "score", "2 s.e.", "95 % interval", "questions", "not shown"]
    lines = [
        (
            row.family or row.variant or row.benchmark,
            row.metric,
            f"{row.value:.3f}",
            f"{2 * row.stderr:.3f}",
            "" if row.ci_low is None else f"{row.ci_low:.3f}–{row.ci_high:.3f}",
            row.num_samples,
            row.num_errors or "",
        )
        for row in rows
    ]
    return columns, lines
