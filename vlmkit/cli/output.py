"""What the user sees: tables or JSON on stdout, notes, errors and progress on stderr."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from vlmkit.pipelines.fit import RunOutcome
    from vlmkit.pipelines.plans.plan import Plan

# Under torchrun every rank runs the command; only the first one speaks (errors excepted).
_silent = os.environ.get("RANK", "0") != "0"
_out = Console(quiet=_silent)
err = Console(stderr=True, quiet=_silent)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> None:
    """A table with its notes below it; numbers are aligned to the right, columns without content left out.

    On a narrow screen cells are broken into lines, but never those of the first column, which names the rows.
    """
    columns, rows = _filled(columns, rows)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    _out.print(table)
    for note in notes:
        _out.print(Padding(Text(note, style="dim"), (0, 0, 0, 2), expand=False))


def print_markdown(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()
) -> None:
    """The same table in Markdown, with a heading and its notes as paragraphs."""
    if _silent:
        return
    columns, rows = _filled(columns, rows)
    lines = [columns, ["---"] * len(columns), *rows]
    table = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    sys.stdout.write("\n".join([f"## {title}\n", table, *(f"{note}\n" for note in notes)]) + "\n")


def print_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows by column name as one CSV table; what a row does not have stays empty."""
    if _silent:
        return
    writer = csv.DictWriter(sys.stdout, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    if _silent:
        return
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_text(text: str) -> None:
    """A line on stdout."""
    _out.print(Text(text))


def print_note(text: str) -> None:
    """A line on stderr, out of the way of data."""
    err.print(Text(text, style="dim"))


def print_error(text: str) -> None:
    """An error sentence on stderr."""
    Console(stderr=True).print(Text.assemble(("Error: ", "bold red"), text), soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """What a command is about to do, before it does it; on stderr, so that stdout holds results only."""
    table = Table(title=plan.title, title_justify="left", title_style="bold", show_header=False, box=None)
    for name, value in plan.facts:
        table.add_row(Text(name, style="dim"), Text(value))
    err.print(table)
    if plan.obstacle:
        err.print(Text.assemble(("Cannot run here: ", "bold yellow"), plan.obstacle), soft_wrap=True)


def print_run_summary(outcome: RunOutcome, next_step: str) -> None:
    """How a training run ended, where its model lies, and what to do with it."""
    if outcome.already_finished:
        print_text(f"{outcome.run.path} is finished already ({outcome.run.model_dir}); nothing was done.")
    else:
        figures = ", ".join(f"{name} {short(value)}" for name, value in outcome.metrics.items())
        print_text(f"Done: {outcome.step} steps, {outcome.samples_seen} samples seen; {figures}")
        print_text(f"Model: {outcome.run.model_dir}")
    print_text(next_step)


def _filled(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[list[str], list[list[str]]]:
    """The columns that have content in some row, and the cells as text."""
    filled = [index for index in range(len(columns)) if not rows or any(row[index] not in (None, "") for row in rows)]
    cells = [["" if row[index] is None else str(row[index]) for index in filled] for row in rows]
    return [columns[index] for index in filled], cells


def _is_number(cell: str) -> bool:
    text = cell.split(" ")[0].rstrip("%xKMGTB")
    try:
        float(text.replace(",", ""))
    except ValueError:
        return not cell
    return True


def short(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
