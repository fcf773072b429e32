"""How scores are printed: of runs, of runs beside each other, and of predictions in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlmkit.cli.options import Format, Scoring
from vlmkit.cli.output import print_csv, print_json, print_markdown, print_table

if TYPE_CHECKING:
    from vlmkit.pipelines.evaluation.reports import Report


def print_reports(reports: Mapping[str, Sequence[Report]], form: Format) -> None:
    """The reports of every run: tables with their notes, or all fields of the result rows."""
    from vlmkit.runs import result_columns

    rows = {run: [row.as_dict() for report in of_run for row in report.rows] for run, of_run in reports.items()}
    if form is Format.json:
        print_json(rows)
    elif form is Format.csv:
        print_csv(["run", *result_columns()], [{"run": run, **row} for run in rows for row in rows[run]])
    else:
        show = print_markdown if form is Format.markdown else print_table
        for of_run in reports.values():
            for report in of_run:
                show(report.title, report.columns, report.table, report.notes)


def print_comparison(runs: Sequence[Path], form: Format) -> None:
    """What the runs have scored: a table with a column for each, or an object (a line) for each number."""
    from vlmkit.pipelines.evaluation.compare import compare

    comparison = compare(runs)
    if form is Format.json:
        print_json(comparison.to_json())
    elif form is Format.csv:
        rows = comparison.to_json()
        print_csv(list(rows[0]), rows)
    else:
        show = print_markdown if form is Format.markdown else print_table
        show("Scores of the runs", *comparison.table(), notes=["± is two standard errors; differences are paired."])


def print_scores(path: Path, benchmark: str, scoring: Scoring, summary: bool) -> None:
    """The scores of the predictions in a file, or their summary, as JSON."""
    from vlmkit.pipelines.evaluation.score_file import score_file

    scored = score_file(path, benchmark, scoring.value)
    print_json(dict(scored.summary()) if summary else scored.results())
