"""What all training commands share: prepare the run, train, export the model whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vlmkit.config import Section
from vlmkit.errors import Interrupted
from vlmkit.runs import RunDirectory
from vlmkit.training.checkpoint import whole_checkpoints
from vlmkit.training.distributed import DistributedContext
from vlmkit.training.metrics import Progress
from vlmkit.training.trainer import Trainer


@dataclass(frozen=True)
class RunOutcome:
    """A finished run: where it is, how far it went, its last metrics. ``already_finished``: nothing was left to do."""

    run: RunDirectory
    step: int = 0
    samples_seen: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    already_finished: bool = False


def prepare(run: RunDirectory, recipe: Section, data: Mapping[str, str], context: DistributedContext) -> None:
    """Make the run directory, or check that it holds this very run; every rank raises what the first one finds."""
    context.on_main(lambda: run.prepare(recipe, data, hardware(context)))


def hardware(context: DistributedContext) -> dict[str, str | int]:
    """Where the run computes, for its provenance."""
    device = torch.cuda.get_device_name() if context.device.type == "cuda" else "cpu"
    return {"device": device, "world_size": context.world_size}


def is_finished(run: RunDirectory, total_steps: int) -> bool:
    """Whether the run has its model and went as far as ``total_steps`` (a longer length goes on training)."""
    steps = [int(path.name.removeprefix("step-")) for path in whole_checkpoints(run.checkpoints)]
    return run.finished and bool(steps) and steps[-1] >= total_steps


class PassProgress:
    """Shows passes over data before training, each from its first word on: one that is found done stays unseen.

    Called with (parts done, parts in all). Closes as a context manager. Ranks other than the first show nothing.
    """

    def __init__(self, progress: Progress | None, description: str) -> None:
        self._progress = progress if os.environ.get("RANK", "0") == "0" else None
        self._description = description
        self._done: int | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None:
            return
        if self._done is None or done <= self._done:  # the first word of a pass
            self._finish()
            self._progress.start(total, 0, self._description)
        self._done = done
        self._progress.update(done, {})

    def _finish(self) -> None:
        if self._progress is not None and self._done is not None:
            self._progress.finish()

    def __enter__(self) -> PassProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()


def fit_and_export(trainer: Trainer, run: RunDirectory, before_export: Callable[[], None] = lambda: None) -> RunOutcome:
    """Train to the end and write ``model/``; raises Interrupted when a signal stopped training, after it was saved.

    ``before_export`` runs on the first rank with the trained model: ``model/`` says that nothing is left to do.
    """
    result = trainer.fit()
    if result.interrupted is not None:
        raise Interrupted(
            f"Stopped by a signal at step {result.step} of {trainer.total_steps}, saved in {run.checkpoints}; "
            "the same command goes on from there.",
            result.interrupted,
        )
    trainer.context.on_main(before_export)
    with run.writing_model() if trainer.context.is_main else nullcontext(Path()) as directory:
        trainer.export(directory)
    shown = {name: value for name, value in result.metrics.items() if name == "train/loss" or name.startswith("val/")}
    return RunOutcome(run, result.step, result.samples_seen, shown)
