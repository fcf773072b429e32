"""``vlmkit sweep``: a grid of VLMs, trained and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vlmkit.cli.options import DryRunOption, OutOption, RecipeOption, SetOption, resolve
from vlmkit.cli.output import print_note, print_table

if TYPE_CHECKING:
    from vlmkit.config import SweepRecipe
    from vlmkit.runs import ResultRow


def sweep(
    recipe: RecipeOption = None,
    out: OutOption = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs that train at the same time.")] = 1,
    sets: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Train and evaluate every combination of language model, token count, compressor and seed of a recipe.

    Finished runs are skipped, so the same command goes on where it was stopped.
    """
    resolved = cast("SweepRecipe", resolve("sweep", recipe, None, {}, sets))
    from vlmkit.cli.progress import RichProgress
    from vlmkit.pipelines import sweep as pipeline
    from vlmkit.pipelines.grid import scores

    directory = out or Path("runs/sweep")
    if dry_run:
        results = {name: scores(directory / name) for name in pipeline.cells(resolved)}
    else:
        results = pipeline.sweep(resolved, directory, jobs, RichProgress(), _announce)
    columns, lines = pipeline.table(results)
    print_table(f"Sweep {directory}: scores, higher is better", columns, lines)


def _announce(name: str, rows: list[ResultRow]) -> None:
    print_note(f"{name}: " + ", ".join(f"{row.family} {row.value:.3f} ({row.visual_tokens} tokens)" for row in rows))
