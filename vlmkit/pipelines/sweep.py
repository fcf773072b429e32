"""A grid of VLMs: one run for each language model, token count, compressor and seed, trained and evaluated."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from json import loads
from multiprocessing import get_context
from pathlib import Path

import torch

from vlmkit import registry
from vlmkit.config import SweepRecipe, VLMRecipe
from vlmkit.data.sources import open_conversations
from vlmkit.errors import Interrupted, UserError
from vlmkit.pipelines.evaluate import EvalSettings, evaluate
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.runs import ResultRow, RunDirectory
from vlmkit.training.metrics import Progress

POLL_SECONDS = 2.0


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
    return size * recipe.compressor.num_visual_tokens


def sweep(
    recipe: SweepRecipe,
    out: Path,
    jobs: int,
    progress: Progress | None = None,
    on_cell: Callable[[str, list[ResultRow]], None] | None = None,
) -> dict[str, list[ResultRow]]:
    """Train and evaluate all cells in ``out``, ``jobs`` at a time, sharing the processors; returns their result rows.

    What is finished is not done again. ``on_cell`` hears of every cell as it is done. Raises UserError naming the cells
    that failed, after the others have ended, and Interrupted when stopped (all running cells are saved).
    """
    grid = cells(recipe)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    )
    futures = {pool.submit(_run_cell, cell, out / name, recipe.eval_samples): name for name, cell in grid.items()}
    num_samples = len(open_conversations(recipe.base.data.train))
    total = sum(cell.finetune.total_steps(num_samples) for cell in grid.values())
    if progress:
        progress.start(total, 0, f"{len(grid)} runs")
    try:
        failures = _watch(futures, grid, out, progress, on_cell)
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped; the runs in {out} are saved and the same command goes on.", 2) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if progress:
            progress.finish()
    if failures:
        raise UserError("; ".join(f"{name} failed: {reason}" for name, reason in failures.items()))
    return {name: scores(out / name) for name in grid}


def scores(run: Path) -> list[ResultRow]:
    """The result rows of one cell, none if it has not been evaluated."""
    return RunDirectory(run).results()


def table(results: Mapping[str, list[ResultRow]]) -> tuple[list[str], list[tuple[object, ...]]]:
    """(column names, lines) of a table of cells against families; a cell that has no result yet stays empty."""
    families = list(dict.fromkeys(row.family for rows in results.values() for row in rows))
    lines: list[tuple[object, ...]] = []
    for name, rows in results.items():
        values = {row.family: f"{row.value:.3f}" for row in rows}
        lines.append((name, *(values.get(family, "") for family in families)))
    return ["run", *families], sorted(lines, key=str)


def _run_cell(recipe: VLMRecipe, out: Path, eval_samples: int | None) -> None:
    train_vlm(recipe, out)
    if not scores(out):
        evaluate(out, [], EvalSettings(limit=eval_samples, device=recipe.finetune.device))


def _watch(
    futures: Mapping[Future[None], str],
    grid: Mapping[str, VLMRecipe],
    out: Path,
    progress: Progress | None,
    on_cell: Callable[[str, list[ResultRow]], None] | None,
) -> dict[str, str]:
    """Wait for all cells, showing the steps they have made; returns the reasons of those that failed."""
    failures: dict[str, str] = {}
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            error = future.exception()
            if isinstance(error, Interrupted):
                raise KeyboardInterrupt
            if error is not None and not isinstance(error, UserError):
                raise error
            if error is not None:
                failures[futures[future]] = str(error)
            elif on_cell:
                on_cell(futures[future], scores(out / futures[future]))
        if progress:
            progress.update(sum(_steps_made(RunDirectory(out / name)) for name in grid), {})
    return failures


def _steps_made(run: RunDirectory) -> int:
    """The step of the last line of the run's metrics."""
    try:
        lines = run.metrics_path.read_text().splitlines()
        return int(loads(lines[-1])["step"]) if lines else 0
    except (FileNotFoundError, ValueError):
        return 0
