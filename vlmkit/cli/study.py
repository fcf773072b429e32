"""``vlmkit study``: arms of pretraining against each other, over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vlmkit.cli.options import DryRunOption, OutOption, RecipeOption, SetOption, resolve
from vlmkit.cli.output import print_note, print_plan, print_table

if TYPE_CHECKING:
    from vlmkit.config import StudyRecipe
    from vlmkit.runs import ResultRow


def study(
    recipe: RecipeOption = None,
    out: OutOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs that train at the same time.")] = 1,
    sets: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Pretrain every arm of a study over its seeds, at equal data and at equal seconds, and evaluate the towers.

    Finished runs are skipped, so the same command goes on where it was stopped. The tables with their settings are
    also written to OUT/study.md, those of a study that stopped early too.
    """
    resolved = cast("StudyRecipe", resolve("study", recipe, None, {}, sets))
    from vlmkit.cli.progress import RichProgress
    from vlmkit.pipelines.grids import study as pipeline

    directory = out or Path("runs/study")
    if dry_run:
        print_plan(pipeline.plan(resolved, directory))
        done = pipeline.planned_cells(resolved, directory)
    else:
        done = pipeline.study(resolved, directory, jobs, RichProgress(), _announce)
    for table in pipeline.tables(resolved, done, directory):
        print_table(f"Study {directory}: {table.title}, mean over seeds ± standard error", table.columns, table.lines)


def _announce(name: str, rows: list[ResultRow]) -> None:
    found: dict[str, list[str]] = {}
    for row in rows:
        if not row.variant:
            found.setdefault(row.benchmark, []).append(f"{row.family} {row.value:.3f}")
    print_note(f"{name}: " + "; ".join(f"{task} {', '.join(values)}" for task, values in found.items()))
