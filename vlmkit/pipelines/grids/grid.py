"""Many runs of one command: several at a time in processes of their own, resumable, with one progress display."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from json import loads
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vlmkit.errors import Interrupted, UserError
from vlmkit.pipelines.grids import grid_worker
from vlmkit.runs import ResultRow, RunDirectory
from vlmkit.training.metrics import Progress
from vlmkit.training.signals import StopSignals

POLL_SECONDS = 2.0

OnCell = Callable[[str, list[ResultRow]], None]
"""Hears the name and the result rows of every cell as it is done."""


def run_grid(
    cells: Mapping[str, tuple[Any, ...]],
    run_cell: Callable[..., None],
    total_steps: int,
    out: Path,
    jobs: int,
    progress: Progress | None = None,
    on_cell: OnCell | None = None,
) -> None:
    """Call ``run_cell(out / name, *arguments)`` for every cell, ``jobs`` at a time.

    The processors are shared equally among the jobs. ``total_steps`` of all cells together is what the progress counts
    up to. Raises UserError naming the cells that failed, after the others have ended, or at once if a process was
    killed; and Interrupted at SIGINT or SIGTERM. However this ends, no process outlives it, and runs that were going on
    have saved their state; if this process itself is killed, they end with it.
    """
    context = get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=grid_worker.begin, initargs=(max(1, _processors() // jobs), lifeline)
    )
    with StopSignals() as signals:
        futures = {
            pool.submit(grid_worker.run, run_cell, out / name, arguments): name for name, arguments in cells.items()
        }
        if progress:
            progress.start(total_steps, 0, f"{len(cells)} runs")
        try:
            failures = _watch(futures, out, signals, progress, on_cell)
        except BrokenProcessPool as error:
            raise UserError(
                f"A process that trained a run in {out} was killed, perhaps for want of memory; the same command goes "
                "on from the last checkpoints: give it fewer --jobs if memory was short."
            ) from error
        finally:
            held.close()  # whatever still runs is to stop
            pool.shutdown(wait=True, cancel_futures=True)
            lifeline.close()
            if progress:
                progress.finish()
    if failures:
        raise UserError("; ".join(f"{name} failed: {reason}" for name, reason in failures.items()))


def _processors() -> int:
    """Processors this process may use: a job of a cluster has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scores(run: Path) -> list[ResultRow]:
    """The result rows of one cell, none if it has not been evaluated."""
    return RunDirectory(run).results()


def _watch(
    futures: Mapping[Future[None], str],
    out: Path,
    signals: StopSignals,
    progress: Progress | None,
    on_cell: OnCell | None,
) -> dict[str, str]:
    """Wait for all cells, showing the steps they have made; returns the reasons of those that failed."""
    failures: dict[str, str] = {}
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            error = future.exception()
            if isinstance(error, Interrupted):
                raise _interrupted(out, error.signum)
            if error is not None and not isinstance(error, UserError):
                raise error
            if error is not None:
                failures[futures[future]] = str(error)
            elif on_cell:
                on_cell(futures[future], scores(out / futures[future]))
        if signals.received is not None:
            raise _interrupted(out, signals.received)
        if progress:
            progress.update(sum(_steps_made(RunDirectory(out / name)) for name in futures.values()), {})
    return failures


def _interrupted(out: Path, number: int) -> Interrupted:
    return Interrupted(f"Stopped; the runs in {out} are saved and the same command goes on.", number)


def _steps_made(run: RunDirectory) -> int:
    """The step of the last line of the run's metrics."""
    try:
        lines = run.metrics_path.read_text().splitlines()
        return int(loads(lines[-1])["step"]) if lines else 0
    except (FileNotFoundError, ValueError):
        return 0
