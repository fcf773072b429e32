"""``vlmkit sweep``: a grid of VLMs, trained and evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vlmkit.cli.options import DryRunOption, OutOption, RecipeOption, SetOption, resolve
from vlmkit.cli.output import print_note, print_table, print_text

if TYPE_CHECKING:
    from vlmkit.config import SweepRecipe
    from vlmkit.pipelines.grids.series_law import Law
    from vlmkit.pipelines.grids.sweep_results import SweepResults
    from vlmkit.runs import ResultRow


class Launcher(str, Enum):
    """Where the runs of a sweep go."""

    local = "local"
    slurm = "slurm"


def sweep(
    recipe: RecipeOption = None,
    out: OutOption = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Runs that train at the same time. Default: 1; Slurm: no limit."),
    ] = None,
    launcher: Annotated[
        Launcher,
        typer.Option(help="slurm: write the script of a job array, print how to submit it, collect what is done."),
    ] = Launcher.local,
    cell: Annotated[
        int | None, typer.Option(min=0, help="Train and evaluate this one run of the grid only, counted from 0.")
    ] = None,
    sets: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train and evaluate every combination of language model, token count, compressor and seed of a recipe.

    Finished runs are skipped, so the same command goes on where it was stopped. Ends in OUT/results.csv (which `vlmkit
    frontier` reads), the law of each compressor, OUT/frontier.png, OUT/report.html and OUT/sweep.md.
    """
    resolved = cast("SweepRecipe", resolve("sweep", recipe, None, {}, sets))
    from vlmkit.cli.progress import RichProgress
    from vlmkit.errors import UserError
    from vlmkit.pipelines.grids import sweep as pipeline

    directory = out or Path("runs/sweep")
    if cell is not None and (dry_run or launcher is Launcher.slurm):
        raise UserError("--cell trains one run here and now: leave --launcher and --dry-run out.")
    if cell is not None:
        pipeline.run_cell(resolved, directory, cell, RichProgress(), _announce)
    elif dry_run:
        _print(pipeline.results(resolved, directory), [])
    elif launcher is Launcher.slurm:
        results, laws, submit = pipeline.launch_on_slurm(resolved, directory, jobs)
        _print(results, laws)
        if submit:
            print_text(f"Submit the runs that are left: {submit}")
            print_text("When they have ended, the same command as now collects their results.")
    else:
        _print(*pipeline.sweep(resolved, directory, jobs or 1, RichProgress(), _announce))


def _print(results: SweepResults, laws: Sequence[Law]) -> None:
    for table in results.tables():
        title = f"Sweep {results.out}: {table.title}, mean over seeds ± standard error, higher is better"
        print_table(title, table.columns, table.lines)
    for law in laws:
        if law.frontier:
            print_table(law.table.title, law.table.columns, law.table.lines, list(law.notes()))
            print_note(f"Picture: {law.picture}, page: {law.page}")
        else:
            print_note(f"{law.series}: {next(law.notes())}")


def _announce(name: str, rows: list[ResultRow]) -> None:
    scored = [row for row in rows if row.family]
    print_note(f"{name}: " + ", ".join(f"{row.family} {row.value:.3f} ({row.visual_tokens} tokens)" for row in scored))
