"""Tables of what many runs scored: means over seeds with their standard errors, as text and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Score:
    """Mean of a number over seeds, and the standard error of that mean (None with a single seed)."""

    mean: float
    stderr: float | None
    num_seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Score:
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        return cls(statistics.fmean(values), spread, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.stderr:.3f}" if self.stderr is not None else "")


@dataclass(frozen=True)
class Table:
    """Lines of text under column names. Cells without a result yet say so."""

    title: str
    columns: list[str]
    lines: list[tuple[str, ...]]

    def markdown(self) -> str:
        return pipe_table(self.columns, self.lines)


def scores_over_seeds(found: Sequence[Sequence[float]], num_seeds: int) -> tuple[str, ...]:
    """The cells of a line: the score of each column from its values over seeds, then how many seeds there are."""
    seeds = max(map(len, found), default=0)
    scores = (str(Score.of(values)) if values else UNFINISHED for values in found)
    return (*scores, str(seeds) if seeds == num_seeds else f"{seeds} of {num_seeds}")


def pipe_table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(columns)
    rows: list[Iterable[str]] = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
