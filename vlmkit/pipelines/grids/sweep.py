"""A grid of VLMs: one run for each language model, token count, compressor and seed, trained and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

from vlmkit import registry
from vlmkit.config import Query, SweepRecipe, VLMRecipe
from vlmkit.data.sources.opener import open_conversations
from vlmkit.errors import UserError
from vlmkit.pipelines.evaluation.evaluate import EvalSettings, evaluate
from vlmkit.pipelines.grids.grid import OnCell, run_grid
from vlmkit.pipelines.grids.series_law import Law
from vlmkit.pipelines.grids.slurm import write_array_script
from vlmkit.pipelines.grids.sweep_results import SweepResults, unevaluated
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.runs import ResultRow, write_atomically
from vlmkit.training.metrics import Progress


def cells(recipe: SweepRecipe) -> dict[str, VLMRecipe]:
    """The recipe of every run of the grid, by the name of its directory; the costliest first, to fill all jobs."""
    grid = {}
    for llm, (compressor, query), tokens, seed in product(
        recipe.llms, _compressors(recipe), recipe.tokens, recipe.seeds
    ):
        raw = recipe.base.model_dump(exclude_unset=True)
        raw["llm"] = {**raw.get("llm", {}), "name": llm}
        given = {"name": compressor, "num_visual_tokens": tokens} | ({"query": query} if query else {})
        raw["compressor"] = {**raw.get("compressor", {}), **given}
        raw["seed"] = seed
        cell = _with_rate(VLMRecipe.model_validate(raw), recipe.lr.get(llm))
        counts = "-".join(map(str, cell.compressor.counts))
        told = f"-query-{query}" if query else ""
        grid[f"{Path(llm).name}-{compressor}{counts}{told}-seed{seed}"] = cell
    return dict(sorted(grid.items(), key=lambda item: -_cost(item[1])))


def _compressors(recipe: SweepRecipe) -> list[tuple[str, Query | None]]:
    """Each compressor with each of the recipe's queries, if it can be told one; None: what the base recipe says."""
    untold: list[Query | None] = [None]
    return [
        (name, query)
        for name in recipe.compressors
        for query in (registry.compressor(name).conditioned and recipe.queries) or untold
    ]


def _with_rate(recipe: VLMRecipe, lr: float | None) -> VLMRecipe:
    if lr is None:
        return recipe
    finetune = recipe.finetune
    optim = finetune.optim.model_copy(update={"lr": lr})
    return recipe.model_copy(update={"finetune": finetune.model_copy(update={"optim": optim})})


def _cost(recipe: VLMRecipe) -> float:
    size = registry.llm(recipe.llm.name).num_params_non_embedding if registry.is_llm(recipe.llm.name) else 0
    counts = recipe.compressor.counts
    return size * sum(counts) / (len(counts) if recipe.compressor.elastic == "sampled" else 1)


def sweep(
    recipe: SweepRecipe,
    out: Path,
    jobs: int,
    progress: Progress | None = None,
    on_cell: OnCell | None = None,
) -> tuple[SweepResults, list[Law]]:
    """Train and evaluate all cells in ``out``, ``jobs`` at a time, and fit the law of each series.

    What is finished is not done again. ``out/results.csv`` and ``out/sweep.md`` grow with every run that ends.
    Raises as :func:`~vlmkit.pipelines.grids.grid.run_grid` does.
    """
    grid = cells(recipe)
    _run(recipe, grid, out, jobs, progress, _growing(recipe, grid, out, on_cell))
    found = results(recipe, out)
    return found, found.write_laws()


def run_cell(
    recipe: SweepRecipe, out: Path, index: int, progress: Progress | None = None, on_cell: OnCell | None = None
) -> None:
    """Train and evaluate one cell, by its place in :func:`cells`. Raises UserError if there is none."""
    grid = list(cells(recipe).items())
    if not 0 <= index < len(grid):
        raise UserError(f"The sweep has no cell {index}: its {len(grid)} cells are 0 to {len(grid) - 1}.")
    _run(recipe, dict([grid[index]]), out, 1, progress, on_cell)


def launch_on_slurm(recipe: SweepRecipe, out: Path, jobs: int | None) -> tuple[SweepResults, list[Law], str | None]:
    """Collect the results of the cells that are done, with the laws if all are; for the others write a job array,
    ``out/sweep.sbatch``, and return the command that submits it as well (None: all are done).

    ``jobs`` limits the cells that run at the same time. Call it again when the jobs have ended.
    """
    found = results(recipe, out)
    missing = [
        index
        for index, (name, cell) in enumerate(found.cells.items())
        if unevaluated(out / name, cell, recipe.eval_samples)
    ]
    found.write()
    if not missing:
        return found, found.write_laws(), None
    path = out.resolve() / "sweep.yaml"
    write_atomically(path, recipe.to_yaml())
    command = ["sweep", "--recipe", str(path), "--out", str(path.parent)]
    return found, [], write_array_script(out / "sweep.sbatch", command, missing, recipe.slurm, jobs)


def results(recipe: SweepRecipe, out: Path) -> SweepResults:
    """What the runs in ``out`` have scored so far."""
    return SweepResults(recipe, out, cells(recipe))


def _growing(recipe: SweepRecipe, grid: Mapping[str, VLMRecipe], out: Path, on_cell: OnCell | None) -> OnCell:
    def done(name: str, rows: list[ResultRow]) -> None:
        SweepResults(recipe, out, grid).write()
        if on_cell:
            on_cell(name, rows)

    return done


def _run(
    recipe: SweepRecipe,
    grid: Mapping[str, VLMRecipe],
    out: Path,
    jobs: int,
    progress: Progress | None,
    on_cell: OnCell | None,
) -> None:
    num_samples = len(open_conversations(recipe.base.data.train))
    total_steps = sum(cell.finetune.total_steps(num_samples) for cell in grid.values())
    arguments = {name: (cell, recipe.eval_samples) for name, cell in grid.items()}
    run_grid(arguments, _train_and_evaluate, total_steps, out, jobs, progress, on_cell)


def _train_and_evaluate(out: Path, recipe: VLMRecipe, eval_samples: int | None) -> None:
    train_vlm(recipe, out)
    # One count after the other is recorded, so a run that was killed meanwhile lacks the later ones.
    if counts := unevaluated(out, recipe, eval_samples):
        evaluate(out, [], EvalSettings(limit=eval_samples, device=recipe.finetune.device, tokens=counts))
