"""A small task with everything that makes resuming hard, its stream, and jobs that train it.

Residual MLP with dropout, a frozen first layer, tied weights, an int64 counter, and samples with
unequal numbers of targets. As a script it runs jobs given as JSON: one after another under torchrun,
otherwise each in a fork of its own, so that a job may kill its process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vlmkit.config import CheckpointConfig, LogConfig, OptimConfig, TrainConfig
from vlmkit.contracts import Batch, LossOutput
from vlmkit.runs import RunDirectory
from vlmkit.training import FitResult, Trainer
from vlmkit.training.checkpoint import tensors_of

WIDTH, NUM_SAMPLES = 12, 50


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.down(torch.tanh(self.up(x))))


class ToyTask(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(2))
        self.head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied.weight = self.head.weight
        self.gate = nn.Parameter(torch.ones(1))  # one element: on 2 ranks, one of its shards is empty
        self.register_buffer("targets_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps_seen", torch.zeros((), dtype=torch.int64))
        self.event: tuple[int, int] | None = None  # (step, signal) that this process sends itself
        self.whole_group = False  # the signal goes to the loader's workers as well
        self.poison_at: int | None = None
        self.validations = 0

    def begin_step(self, micro_batches: list[Batch]) -> int:
        count = torch.stack([batch["mask"].sum() for batch in micro_batches]).sum().long()
        dist.all_reduce(count)
        self.targets_seen += count
        self.steps_seen += 1
        if self.event and self.event[0] == self.steps_seen:
            os.kill(0 if self.whole_group else os.getpid(), self.event[1])
        return int(count)

    def forward(self, batch: Batch) -> LossOutput:
        x = self.frozen(batch["x"])
        for block in self.blocks:
            x = block(x)
        error = (self.gate * self.head(torch.tanh(self.tied(x))) - batch["y"]).pow(2) * batch["mask"]
        loss = error.sum() * (float("nan") if self.poison_at == self.steps_seen else 1.0)
        count = int(batch["mask"].sum())
        return LossOutput(loss, count, {"train/mean_error": (error.detach().sum(), count)})

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        params = [p for p in self.parameters() if p.requires_grad]
        decayed, rest = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
        return [
            {"name": "matrices", "params": decayed, "lr": optim.lr, "weight_decay": optim.weight_decay},
            {"name": "vectors", "params": rest, "lr": optim.lr / 2, "weight_decay": 0.0},
        ]

    def shard_units(self) -> list[nn.Module]:
        return list(self.blocks)

    def validation_metrics(self, batch: Batch) -> dict[str, tuple[float, float]]:
        assert not any(module.training for module in self.modules())
        self.validations += 1
        torch.rand(3), np.random.rand()
        out = self(batch)
        return {"val/loss": (float(out.loss_sum), out.num_targets)}

    def export(self, directory: str) -> None:
        assert not any(isinstance(p, DTensor) for p in self.parameters())
        assert self.tied.weight is self.head.weight
        save_file({n: p.detach().contiguous() for n, p in self.named_parameters()}, f"{directory}/model.safetensors")


class ToyData(Dataset):
    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        x = torch.randn(WIDTH, generator=generator)
        targets = 1 + key[0] % 7
        return {"x": x, "y": x.flip(0).sin(), "mask": (torch.arange(WIDTH) < targets).float()}


class Order(Sampler):
    def __init__(self, micro: int, global_batch: int, consumed: int, rank: int, world: int) -> None:
        self.micro, self.global_batch, self.consumed, self.rank, self.world = micro, global_batch, consumed, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        consumed = self.consumed
        while True:
            epoch, offset = divmod(consumed, NUM_SAMPLES // self.global_batch * self.global_batch)
            order = np.random.Generator(np.random.Philox(key=[3, epoch])).permutation(NUM_SAMPLES)
            own = order[offset : offset + self.global_batch][self.rank :: self.world]
            for start in range(0, len(own), self.micro):
                yield [(int(i), epoch) for i in own[start : start + self.micro]]
            consumed += self.global_batch


def collate(items: list[dict[str, torch.Tensor]]) -> Batch:
    return {key: torch.stack([item[key] for item in items]) for key in items[0]} | {"num_bad": 0}


class ToyStream:
    """``leaky``: the loader has no generator of its own, so starting it draws from torch's global one."""

    def __init__(self, accumulation: int = 2, workers: int = 0, global_batch: int = 8, leaky: bool = False) -> None:
        self.global_batch_size, self.micro_batches_per_step = global_batch, accumulation
        self.workers, self.leaky = workers, leaky
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    def steps(self, samples_seen: int) -> Iterator[list[Batch]]:
        batches = self.batches(samples_seen)
        while True:
            yield list(itertools.islice(batches, self.micro_batches_per_step))

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        micro = self.global_batch_size // self.world // self.micro_batches_per_step
        order = Order(micro, self.global_batch_size, samples_seen, self.rank, self.world)
        generator = None if self.leaky else torch.Generator()
        loader = DataLoader(
            ToyData(), batch_sampler=order, collate_fn=collate, num_workers=self.workers, generator=generator
        )
        return iter(loader)

    def held_out(self) -> Iterable[Batch]:
        """9 samples in batches of 2; of two ranks, one has a batch more."""
        own = [ToyData()[(i, 10**6)] for i in range(self.rank, 9, self.world)]
        return [collate(own[start : start + 2]) for start in range(0, len(own), 2)]


def toy_config(steps: int = 20, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "steps": steps,
        "global_batch_size": 8,
        "device": "cpu",
        "optim": OptimConfig(lr=3e-3, clip_norm=0.5, warmup=3, weight_decay=0.1),
        "checkpoint": CheckpointConfig(every_steps=4, keep=2, asynchronous=changes.pop("asynchronous", False)),
        "log": LogConfig(every_steps=1),
        "eval_every_steps": 6,
    }
    return TrainConfig(**options | changes)


def toy_trainer(
    run: Path, task: ToyTask, stream: ToyStream, *, steps: int = 20, validate: bool = True, **options: Any
) -> Trainer:
    names = ("max_bad_fraction", "progress", "seed")
    extra = {name: options.pop(name) for name in names if name in options}
    val = stream.held_out if validate else None
    config = toy_config(steps, **options)
    return Trainer(
        config, extra.pop("seed", 0), RunDirectory(run), task, stream, total_steps=steps, val_batches=val, **extra
    )


def run_job(
    run: str | Path,
    *,
    dropout: float = 0.3,
    accumulation: int = 2,
    workers: int = 0,
    leaky: bool = False,
    event: tuple[int, int] | None = None,
    whole_group: bool = False,
    poison_at: int | None = None,
    **options: Any,
) -> tuple[FitResult, ToyTask]:
    """Train the toy in ``run``; what training changed lands in RUN/final.safetensors, the model in RUN/model."""
    run = Path(run)
    task = ToyTask(dropout)
    task.event, task.whole_group, task.poison_at = event, whole_group, poison_at
    trainer = toy_trainer(run, task, ToyStream(accumulation, workers, leaky=leaky), **options)
    result = trainer.fit()
    tensors = tensors_of(task, trainer.optimizer.adamw)
    whole = {name: (t.full_tensor() if isinstance(t, DTensor) else t).contiguous() for name, t in tensors.items()}
    (run / "model").mkdir(exist_ok=True)
    trainer.export(run / "model")
    if trainer.context.is_main:
        save_file({name: t.clone() for name, t in whole.items()}, run / "final.safetensors")
        (run / "result.json").write_text(json.dumps(result.__dict__))
    return result, task


def metrics_of(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what depends on the clock and the machine."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    drop = {"train/samples_per_second", "train/memory_gb"}
    return [{name: value for name, value in line.items() if name not in drop} for line in lines]


def losses_of(run: Path) -> list[float]:
    return [line["train/loss"] for line in metrics_of(run) if "train/loss" in line]


def main() -> None:
    jobs = json.loads(sys.argv[1])
    if "RANK" in os.environ:
        for job in jobs:
            run_job(**job)
        return
    children = {}
    for job in jobs:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            run_job(**job)
            os._exit(0)
        children[pid] = job["run"]
    for pid, run in children.items():
        status = os.waitpid(pid, 0)[1]
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        Path(run, "exit_code").write_text(str(code))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
