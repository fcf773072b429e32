"""What evaluations of every kind of run take and give: settings, and a report of rows with a table for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmkit.runs import ResultRow


@dataclass(frozen=True)
class EvalSettings:
    """What to evaluate on: sources of a tower's tasks (None: the embedded world), samples at most, batch, device, a
    VLM's numbers of visual tokens (none: the most that it serves), and the folder of its benchmarks' data."""

    train_data: str | None = None
    test_data: str | None = None
    limit: int | None = None
    batch_size: int = 128
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tokens: tuple[int, ...] = ()
    data_dir: Path | None = None


@dataclass(frozen=True)
class Report:
    """The rows of one task on one run, and the same as a table for people."""

    title: str
    rows: list[ResultRow]
    columns: list[str]
    table: list[tuple[Any, ...]]
    notes: list[str] = field(default_factory=list)
