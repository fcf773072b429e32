"""The short trainings that some evaluations consist of: the one trainer, in a directory that is thrown away."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from vlmkit.config import CheckpointConfig, TrainConfig
from vlmkit.contracts import BatchStream, Task
from vlmkit.errors import Interrupted
from vlmkit.runs import RunDirectory
from vlmkit.training.metrics import Progress
from vlmkit.training.trainer import Trainer


def train_briefly(
    task: Task,
    stream: BatchStream,
    budget: TrainConfig,
    num_samples: int,
    *,
    progress: Progress | None = None,
    description: str,
) -> None:
    """Train ``task`` in place on a stream over ``num_samples`` samples, to the end of ``budget``; seed 0.

    Raises Interrupted when a signal stopped it: nothing of it is kept, so the evaluation starts again.
    """
    total_steps = budget.total_steps(num_samples)
    budget = budget.model_copy(update={"checkpoint": CheckpointConfig(every_steps=total_steps, keep=1)})
    with TemporaryDirectory(prefix="vlmkit-") as directory:
        trainer = Trainer(
            budget,
            0,
            RunDirectory(directory),
            task,
            stream,
            total_steps=total_steps,
            progress=progress,
            description=description,
        )
        result = trainer.fit()
    if result.interrupted is not None:
        raise Interrupted(
            f"Stopped by a signal at step {result.step} of {total_steps} of the {description} training; "
            "the same command starts this evaluation again.",
            result.interrupted,
        )
