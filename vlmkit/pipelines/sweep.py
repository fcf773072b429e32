"""A grid of VLMs: one run for each language model, token count, compressor and seed, trained and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlmkit import registry
from vlmkit.config import SweepRecipe, VLMRecipe
from vlmkit.data.sources import open_conversations
from vlmkit.pipelines.evaluate import EvalSettings, evaluate
from vlmkit.pipelines.grid import OnCell, run_grid, scores
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.runs import ResultRow
from vlmkit.training.metrics import Progress


def cells(recipe: SweepRecipe) -> dict[str, VLMRecipe]:
    """The recipe of every run of the grid, by the name of its directory; the costliest first, to fill all jobs."""
    grid = {}
    for llm in recipe.llms:
        for compressor in recipe.compressors:
            for tokens in recipe.tokens:
                for seed in recipe.seeds:
                    raw = recipe.base.model_dump(exclude_unset=True)
                    raw["llm"] = {**raw.get("llm", {}), "name": llm}
                    raw["compressor"] = {"name": compressor, "num_visual_tokens": tokens}
                    raw["seed"] = seed
                    name = f"{Path(llm).name}-{compressor}{tokens}-seed{seed}"
                    grid[name] = _with_rate(VLMRecipe.model_validate(raw), recipe.lr.get(llm))
    return dict(sorted(grid.items(), key=lambda item: -_cost(item[1])))


def _with_rate(recipe: VLMRecipe, lr: float | None) -> VLMRecipe:
    if lr is None:
        return recipe
    finetune = recipe.finetune
    optim = finetune.optim.model_copy(update={"lr": lr})
    return recipe.model_copy(update={"finetune": finetune.model_copy(update={"optim": optim})})


def _cost(recipe: VLMRecipe) -> float:
    size = registry.llm(recipe.llm.name).num_params_non_embedding if registry.is_llm(recipe.llm.name) else 0
    return size * sum(recipe.compressor.counts)


def sweep(
    recipe: SweepRecipe,
    out: Path,
    jobs: int,
    progress: Progress | None = None,
    on_cell: OnCell | None = None,
) -> dict[str, list[ResultRow]]:
    """Train and evaluate all cells in ``out``, ``jobs`` at a time; returns their result rows.

    What is finished is not done again. Raises as :func:`~vlmkit.pipelines.grid.run_grid` does.
    """
    grid = cells(recipe)
    num_samples = len(open_conversations(recipe.base.data.train))
    total_steps = sum(cell.finetune.total_steps(num_samples) for cell in grid.values())
    arguments = {name: (cell, recipe.eval_samples) for name, cell in grid.items()}
    return run_grid(arguments, _run_cell, total_steps, out, jobs, progress, on_cell)


def _run_cell(out: Path, recipe: VLMRecipe, eval_samples: int | None) -> None:
    train_vlm(recipe, out)
    if not scores(out):
        evaluate(out, [], EvalSettings(limit=eval_samples, device=recipe.finetune.device))


def table(results: Mapping[str, list[ResultRow]]) -> tuple[list[str], list[tuple[object, ...]]]:
    """(column names, lines) of a table of cells against families; a cell that has no result yet stays empty."""
    families = list(dict.fromkeys(row.family for rows in results.values() for row in rows))
    lines: list[tuple[object, ...]] = []
    for name, rows in results.items():
        values = {row.family: f"{row.value:.3f}" for row in rows}
        lines.append((name, *(values.get(family, "") for family in families)))
    return ["run", *families], sorted(lines, key=str)
