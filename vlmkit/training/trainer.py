"""The one training loop, for every task: what to learn is the task's, where samples come from is the stream's."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlmkit.config import TrainConfig
from vlmkit.contracts import Batch, BatchStream, Task
from vlmkit.errors import UserError
from vlmkit.runs import RunDirectory
from vlmkit.training import distributed, rng
from vlmkit.training.checkpoint import Checkpointer
from vlmkit.training.metrics import MetricsWriter, Progress, Silent, memory_gb
from vlmkit.training.optim import Optimizer, clip_gradients
from vlmkit.training.signals import SIGNALS, StopSignals

MIN_SAMPLES_TO_JUDGE = 200
"""Samples seen before the fraction of bad ones is held against a run."""

Sums = defaultdict[str, list[float]]
"""Metric name -> [sum, weight]."""


@dataclass
class TrainState:
    """What a checkpoint keeps beside tensors: the data position, counters, and the metrics last logged."""

    step: int = 0
    samples_seen: int = 0
    bad_samples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FitResult:
    """How ``Trainer.fit`` ended. ``interrupted`` is the signal number that ended it early, after a checkpoint."""

    step: int
    samples_seen: int
    bad_samples: int
    metrics: dict[str, float]
    interrupted: int | None


@dataclass
class _Tally:
    """What this rank's micro-batches of one step add up to."""

    loss_sum: Tensor
    num_targets: int
    num_bad: int
    metrics: Sums


class Trainer:
    """Trains ``task`` on ``stream`` for ``total_steps`` optimizer steps, resuming from the run's newest checkpoint.

    The loss of a step is its targets' loss summed over micro-batches and ranks, over their number, so accumulation and
    world size do not change it. ``val_batches()`` gives this rank's share of the held-out batches, each sample once.

    Args:
        train: the training section of a recipe.
        seed: of dropout, together with rank and step; the stream has its own.
        run: checkpoints go to ``run.checkpoints``, metrics to ``run.metrics_path``.
        max_bad_fraction: training stops when more of the samples seen had to be replaced.
        description: names the training in the progress display.
    """

    def __init__(
        self,
        train: TrainConfig,
        seed: int,
        run: RunDirectory,
        task: Task,
        stream: BatchStream,
        *,
        total_steps: int,
        val_batches: Callable[[], Iterable[Batch]] | None = None,
        max_bad_fraction: float = 0.01,
        progress: Progress | None = None,
        description: str = "train",
    ) -> None:
        self.train = train
        self.seed = seed
        self.run = run
        self.task = task
        self.stream = stream
        self.total_steps = total_steps
        self.val_batches = val_batches
        self.max_bad_fraction = max_bad_fraction
        self.description = description
        self.context = distributed.setup(train.device)
        self.progress = progress if progress is not None and self.context.is_main else Silent()
        self.model = distributed.wrap(task, train, self.context)
        self.optimizer = Optimizer(task, train.optim, total_steps)
        self.state = TrainState()

    def fit(self) -> FitResult:
        """Train to ``total_steps``, or to a SIGINT or SIGTERM, whose step is finished and saved first.

        Raises:
            UserError: on every rank: the loss or a gradient is not finite (before the optimizer moves), too many bad
                samples, a checkpoint that cannot be written or read, or data that fail.
        """
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopSignals())
            self.checkpointer = Checkpointer(
                self.run.checkpoints,
                self.context,
                cast(nn.Module, self.task),
                self.optimizer.adamw,
                self.train.checkpoint.keep,
                self.train.checkpoint.asynchronous,
            )
            stack.callback(self.checkpointer.close)
            rng_state = self._resume()
            board = self.run.path / "tensorboard" if self.train.log.tensorboard else None
            self.metrics = self.context.together(lambda: self._open_metrics(board))
            if self.metrics:
                stack.callback(self.metrics.close)
            self.progress.start(self.total_steps, self.state.step, self.description)
            stack.callback(self.progress.finish)
            interrupted = self._loop(stop, rng_state)
            self.checkpointer.wait()
        return FitResult(**asdict(self.state), interrupted=interrupted)

    def export(self, directory: Path) -> None:
        """Write the trained model to ``directory``, which exists, from rank 0 with whole weights; collective."""
        with distributed.whole_weights(self.task):
            self.context.on_main(lambda: self.task.export(str(directory)))

    def _resume(self) -> bytes | None:
        restored = self.checkpointer.restore(self.seed)
        if restored is None:
            return None
        state, rng_state = restored
        self.state = TrainState(**state)
        return rng_state

    def _open_metrics(self, tensorboard: Path | None) -> MetricsWriter | None:
        if not self.context.is_main:
            return None
        return MetricsWriter(self.run.metrics_path, self.state.step, tensorboard)

    def _loop(self, stop: StopSignals, rng_state: bytes | None) -> int | None:
        """Steps until the last one or a signal, whose number is returned."""
        state, every = self.state, self.train.checkpoint.every_steps
        if state.step >= self.total_steps:
            return None
        stream = self.stream.steps(state.samples_seen)
        micro_batches = self.context.together(lambda: self._fetch(stream))
        cast(nn.Module, self.task).train()
        with distributed.autocast(self.train, self.context):
            distributed.settle(self.model, self.task, micro_batches)
        # Only now: starting a loader may draw from the generators that dropout draws from.
        if rng_state is not None:
            rng.restore(rng_state, self.context.device)
        else:
            rng.seed_everything(self.seed, self.context.rank, state.step)
        self._restart_clock()
        while True:
            micro_batches, signal_number = self._step(micro_batches, stream, stop)
            done = state.step == self.total_steps
            if not signal_number and (done or self._due(self.train.eval_every_steps)):
                self._validate()
            if signal_number or done or self._due(every):
                self.checkpointer.save(asdict(state))
            if signal_number or done:
                return signal_number

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _fetch(self, stream: Iterator[list[Batch]]) -> list[Batch]:
        """This rank's micro-batches of the next step, on the device."""
        return [self._to_device(batch) for batch in next(stream)]

    def _to_device(self, batch: Batch) -> Batch:
        device = self.context.device
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _step(
        self, micro_batches: list[Batch], stream: Iterator[list[Batch]], stop: StopSignals
    ) -> tuple[list[Batch], int | None]:
        """One optimizer step; returns the next step's micro-batches, fetched while the device works, and the signal.

        A fetch that fails is held back until the ranks have agreed what to do: a signal that reaches the loader's
        workers as well makes it fail, and must end in a checkpoint all the same.
        """
        state = self.state
        tally = self._forward_backward(micro_batches)
        upcoming: list[Batch] = []
        failure: Exception | None = None
        if state.step + 1 < self.total_steps:
            try:
                upcoming = self._fetch(stream)
            except Exception as error:
                failure = error
        sums = torch.cat([tally.loss_sum[None], self._flags(tally.num_bad, failure, stop)])
        dist.all_reduce(sums)
        loss_sum, num_bad, fetch_failures, write_failures, *signals = sums.tolist()
        self._update(loss_sum / tally.num_targets, int(num_bad), tally.metrics)
        received = [number for number, count in zip(SIGNALS, signals, strict=True) if count]
        if write_failures:
            self.checkpointer.wait()
        if received and state.step < self.total_steps:
            return [], received[-1]
        if fetch_failures:
            self.context.together(lambda: _reraise(failure))
        return upcoming, None

    def _flags(self, num_bad: int, failure: Exception | None, stop: StopSignals) -> Tensor:
        """What ranks tell each other once a step, beside the loss."""
        flags = [num_bad, failure is not None, self.checkpointer.failed, *(s == stop.received for s in SIGNALS)]
        return torch.tensor(flags, dtype=torch.float64, device=self.context.device)

    def _forward_backward(self, micro_batches: list[Batch]) -> _Tally:
        """Accumulate the gradients of the step's mean loss over all targets of all ranks."""
        with distributed.autocast(self.train, self.context):
            num_targets = self.task.begin_step(micro_batches)
        step = self.state.step + 1
        if num_targets <= 0:
            raise UserError(
                f"Step {step} has nothing to learn from: no sample of its batch has a target; check the data."
            )
        tally = _Tally(torch.zeros((), dtype=torch.float64, device=self.context.device), num_targets, 0, _sums())
        # DDP and FSDP2 average gradients over ranks; the loss is a sum over ranks divided by the global target count.
        scale = self.context.world_size / num_targets
        passes = distributed.passes(micro_batches, self.train, self.context)
        for number, (batch, counts) in enumerate(passes, 1):
            distributed.set_gradient_sync(self.model, number == len(passes))
            with distributed.autocast(self.train, self.context):
                output = self.model(batch)
            (output.loss_sum * (scale if counts else 0.0)).backward()
            if not counts:
                continue
            tally.loss_sum += output.loss_sum.detach()
            tally.num_bad += int(batch.get("num_bad", 0))
            if self._logs(step):
                _add(tally.metrics, output.metrics)
        distributed.average_statistics(cast(nn.Module, self.task))
        return tally

    def _update(self, loss: float, num_bad: int, metrics: Sums) -> None:
        """Let the optimizer move if all is finite, advance the counters, log."""
        state = self.state
        self._require_finite("loss", loss)
        norm = clip_gradients(self.optimizer.parameters, self.train.optim.clip_norm)
        self._require_finite("gradient norm", norm)
        factor = self.optimizer.step(state.step)
        state.step += 1
        state.samples_seen += self.stream.global_batch_size
        state.bad_samples += num_bad
        self._require_good_samples()
        if self._logs(state.step):
            own = {"train/loss": loss, "train/lr": self.train.optim.lr * factor, "train/grad_norm": norm}
            self._log(own | self._speed() | self._reduce(metrics))
        self.progress.update(state.step, {**state.metrics, "train/loss": loss})

    def _logs(self, step: int) -> bool:
        return step % self.train.log.every_steps == 0 or step == self.total_steps

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise UserError(
                f"The {name} became {value} at step {self.state.step + 1}; training stopped before the weights moved, "
                "and the checkpoints are intact: start again with a lower optim.lr or a longer optim.warmup."
            )

    def _require_good_samples(self) -> None:
        state = self.state
        judged = state.samples_seen >= MIN_SAMPLES_TO_JUDGE or state.step == self.total_steps
        if judged and state.bad_samples > self.max_bad_fraction * state.samples_seen:
            raise UserError(
                f"{state.bad_samples} of the first {state.samples_seen} samples could not be read, more than the "
                f"allowed fraction {self.max_bad_fraction:g}; mend the data or raise data.max_bad_fraction."
            )

    @torch.no_grad()
    def _validate(self) -> None:
        """Held-out metrics over all ranks; training goes on as if nothing had happened in between."""
        if self.val_batches is None:
            return
        task = cast(nn.Module, self.task)
        sums = _sums()
        with rng.undisturbed(self.context.device), _evaluating(task):
            for batch, counts in distributed.aligned(self.val_batches(), self.train, self.context):
                with distributed.autocast(self.train, self.context):
                    metrics = self.task.validation_metrics(self._to_device(batch))
                if counts:
                    _add(sums, metrics)
        self._log(self._reduce(sums))
        self._restart_clock()

    def _reduce(self, sums: Sums) -> dict[str, float]:
        """Exact averages over ranks, by name."""
        total = _sums()
        for part in self.context.gather({name: (value, weight) for name, (value, weight) in sums.items()}):
            _add(total, part)
        return {name: value / weight for name, (value, weight) in sorted(total.items()) if weight}

    def _log(self, metrics: dict[str, float]) -> None:
        self.state.metrics |= metrics
        if self.metrics:
            self.metrics.write(self.state.step, {"samples_seen": self.state.samples_seen, **metrics})

    def _restart_clock(self) -> None:
        self._clock = (time.perf_counter(), self.state.samples_seen)

    def _speed(self) -> dict[str, float]:
        """Samples per second since the clock was last started, and peak memory."""
        then, samples = self._clock
        rate = (self.state.samples_seen - samples) / (time.perf_counter() - then)
        self._restart_clock()
        return {"train/samples_per_second": rate, "train/memory_gb": memory_gb(self.context.device)}


def _sums() -> Sums:
    return defaultdict(lambda: [0.0, 0.0])


def _add(sums: Sums, metrics: Mapping[str, tuple[Tensor | float, float]]) -> None:
    for name, (value, weight) in metrics.items():
        sums[name][0] += float(value)
        sums[name][1] += float(weight)


def _reraise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards each submodule is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
