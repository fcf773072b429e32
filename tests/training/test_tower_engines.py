"""Vision towers under every engine: DDP and FSDP2, bf16, gradient checkpointing, compiled blocks.

As a script it trains a tower under the options given as JSON, one run after another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from toy_task import losses_of, toy_config

from vlmkit.config import OptimConfig
from vlmkit.contracts import Batch, LossOutput
from vlmkit.models.vision_tower import build_tower
from vlmkit.runs import RunDirectory
from vlmkit.training import Trainer, distributed

SIDE, STEPS = 64, 3


class TowerTask(nn.Module):
    """Regression on the pooled features of a tower."""

    def __init__(self, tower: str, checkpointing: bool) -> None:
        super().__init__()
        self.tower = build_tower(tower, SIDE)
        self.tower.set_gradient_checkpointing(checkpointing)
        torch.manual_seed(0)
        self.head = nn.Linear(self.tower.width, 3)

    def begin_step(self, micro_batches: list[Batch]) -> int:
        count = torch.tensor(sum(len(batch["x"]) for batch in micro_batches))
        dist.all_reduce(count)
        return int(count)

    def forward(self, batch: Batch) -> LossOutput:
        error = self.head(self.tower.pooled(batch["x"])) - batch["y"]
        return LossOutput(error.pow(2).sum(), len(error))

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.parameters()), "lr": optim.lr, "weight_decay": 0.0}]

    def shard_units(self) -> list[nn.Module]:
        return self.tower.blocks()

    def validation_metrics(self, batch: Batch) -> dict[str, tuple[float, float]]:
        return {}

    def export(self, directory: str) -> None:
        torch.save(self.state_dict(), f"{directory}/state.pt")


class Noise:
    """Eight images a step, shared out among the ranks."""

    global_batch_size = 8

    def steps(self, samples_seen: int) -> Iterator[list[Batch]]:
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        generator = torch.Generator().manual_seed(11)
        while True:
            x = torch.randint(0, 256, (8, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
            y = torch.randn(8, 3, generator=generator)
            shares = [slice(rank + part * 4, (part + 1) * 4, world) for part in range(2)]
            yield [{"x": x[mine], "y": y[mine]} for mine in shares]


def train(run: str, tower: str, checkpointing: bool = False, **options: Any) -> TowerTask:
    """Train in ``run``; rank 0 leaves the weights there as ``state.pt``."""
    task = TowerTask(tower, checkpointing)
    config = toy_config(STEPS, eval_every_steps=None, **options)
    trainer = Trainer(config, 0, RunDirectory(run), task, Noise(), total_steps=STEPS)
    trainer.fit()
    trainer.export(Path(run))
    return task


def main() -> None:
    for job in json.loads(sys.argv[1]):
        task = train(**job)
        norms = [module for module in task.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:  # every rank saw other samples, and training leaves all with the mean of what they saw
            for statistic in (norm.running_mean, norm.running_var):
                first, second = everyones(statistic)
                assert torch.equal(first, second)
        if norms:
            before = [everyones(norm.running_mean.add_(dist.get_rank())) for norm in norms]
            distributed.average_statistics(task)
            for norm, values in zip(norms, before, strict=True):
                assert not torch.equal(values[0], values[1])
                torch.testing.assert_close(norm.running_mean, torch.stack(values).mean(0))


def everyones(tensor: torch.Tensor) -> list[torch.Tensor]:
    """``tensor`` of every rank, in rank order."""
    values = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(values, tensor)
    return values


def run_jobs(*jobs: dict[str, Any], ranks: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    result = subprocess.run(
        [*command, __file__, json.dumps(jobs)], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]


@pytest.mark.dist
@pytest.mark.parametrize("tower", ["timm:test_convnext", "timm:test_resnet"])
def test_convnets_train_alike_under_ddp_and_fsdp(tower: str, tmp_path: Path) -> None:
    """Among them one whose norms are batch norms, which FSDP2 may not cast to bf16."""
    options: dict[str, dict[str, Any]] = {
        "ddp": {},
        "fsdp": {"parallel": "fsdp", "checkpointing": True},
        "bf16": {"parallel": "fsdp", "checkpointing": True, "precision": "bf16"},
    }
    run_jobs(*({"run": str(tmp_path / name), "tower": tower, **options[name]} for name in options), ranks=2)
    expected, bf16 = losses_of(tmp_path / "ddp"), losses_of(tmp_path / "bf16")
    assert losses_of(tmp_path / "fsdp") == pytest.approx(expected, rel=1e-5)
    assert bf16 == pytest.approx(expected, rel=0.05) and bf16 != expected
    states = {name: torch.load(tmp_path / name / "state.pt") for name in options}
    assert states["fsdp"].keys() == states["ddp"].keys()
    for name, tensor in states["ddp"].items():
        if "running" not in name and "num_batches" not in name:  # checkpointing counts every batch twice
            torch.testing.assert_close(states["fsdp"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert {tensor.dtype for tensor in states["bf16"].values()} <= {torch.float32, torch.int64}


@pytest.mark.slow
def test_compiled_blocks_train_alike_and_keep_the_names(tmp_path: Path) -> None:
    plain = train(str(tmp_path / "plain"), "ViT-mini-8-64")
    compiled = train(str(tmp_path / "compiled"), "ViT-mini-8-64", compile=True, checkpointing=True)
    assert all(block._compiled_call_impl is not None for block in compiled.tower.blocks())
    assert losses_of(tmp_path / "compiled") == pytest.approx(losses_of(tmp_path / "plain"), rel=1e-4)
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
def test_a_missing_compiler_is_named_before_training(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + (
        f"from test_tower_engines import train\ntrain({str(tmp_path)!r}, 'ViT-mini-8-64', compile=True)"
    )
    absent = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **absent}, capture_output=True, text=True, check=False
    )
    assert "UserError: torch.compile does not work here" in result.stderr
    assert "set train.compile to false" in result.stderr


if __name__ == "__main__":
    main()
