from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_task import Batch, ToyStream, ToyTask, losses_of, metrics_of, run_job, toy_config, toy_trainer

from vlmkit.errors import UserError
from vlmkit.training import rng
from vlmkit.training.metrics import MetricsWriter


def test_losses_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """An independent float64 loop over whole batches, by the definition: summed loss over the number of targets."""
    run_job(tmp_path, dropout=0.0, accumulation=4, steps=6)
    task = ToyTask(0.0).double()
    stream = ToyStream(accumulation=1).batches(0)
    groups = [{**group, "peak": group["lr"]} for group in task.parameter_groups(toy_config().optim)]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
    losses = []
    for step in range(6):
        batch = next(stream)
        batch = {"x": batch["x"].double(), "y": batch["y"].double(), "mask": batch["mask"].double()}
        out = task(batch)
        loss = out.loss_sum / batch["mask"].sum()
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 0.5)
        factor = (step + 1) / 3 if step < 3 else 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - 3) / 3)).item())
        for group in adamw.param_groups:
            group["lr"] = group["peak"] * factor
        adamw.step()
        adamw.zero_grad()
    assert losses_of(tmp_path) == pytest.approx(losses, rel=1e-5)


def test_accumulation_does_not_change_the_run(tmp_path: Path) -> None:
    for accumulation in (1, 4):
        run_job(tmp_path / str(accumulation), dropout=0.0, accumulation=accumulation)
    assert losses_of(tmp_path / "1") == pytest.approx(losses_of(tmp_path / "4"), rel=1e-5)
    metrics = metrics_of(tmp_path / "4")
    assert all(
        line["train/mean_error"] == pytest.approx(line["train/loss"]) for line in metrics if "train/loss" in line
    )


def test_validation_is_exact_and_leaves_no_trace(tmp_path: Path) -> None:
    run_job(tmp_path / "with")
    result, task = run_job(tmp_path / "without", validate=False)
    assert losses_of(tmp_path / "with") == losses_of(tmp_path / "without")
    lines = [line for line in metrics_of(tmp_path / "with") if "val/loss" in line]
    assert [line["step"] for line in lines] == [6, 12, 18, 20]
    task.eval().requires_grad_(False)
    outputs = [task(batch) for batch in ToyStream().held_out()]
    expected = sum(float(out.loss_sum) for out in outputs) / sum(out.num_targets for out in outputs)
    assert lines[-1]["val/loss"] == expected
    assert "val/loss" not in result.metrics


def test_frozen_parts_kept_in_eval_mode_stay_so_after_validation(tmp_path: Path) -> None:
    class Pinned(ToyTask):
        def train(self, mode: bool = True) -> Pinned:
            super().train(mode)
            self.frozen.train(False)
            return self

    task = Pinned(0.0)
    toy_trainer(tmp_path, task, ToyStream(), steps=3).fit()
    assert task.validations == 5 and task.training and task.blocks[0].dropout.training and not task.frozen.training


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(tmp_path: Path) -> None:
    run_job(tmp_path / "reference", steps=20, event=(5, signal.SIGTERM))  # stops after step 5 of 20
    with pytest.raises(UserError, match=r"loss became nan at step 6"):
        run_job(tmp_path / "run", poison_at=6)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000004"]
    task = ToyTask(0.3)
    task.poison_at = 6
    trainer = toy_trainer(tmp_path / "again", task, ToyStream())
    with pytest.raises(UserError):
        trainer.fit()
    weights = load_file(tmp_path / "reference/final.safetensors")
    assert task.head.weight.equal(weights["model.head.weight"])
    assert run_job(tmp_path / "run")[0].step == 20  # the checkpoint of step 4 is fine


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    task = ToyTask(0.0)
    task.gate.register_hook(lambda gradient: gradient * float("inf"))
    before = task.head.weight.detach().clone()
    with pytest.raises(UserError, match=r"gradient norm became \w+ at step 1"):
        toy_trainer(tmp_path, task, ToyStream()).fit()
    assert task.head.weight.equal(before)


class Spoiled(ToyStream):
    """Every micro-batch reports one replaced sample until ``until`` of them have been drawn."""

    def __init__(self, until: int, global_batch: int = 8) -> None:
        super().__init__(global_batch=global_batch)
        self.until = until

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        for index, batch in enumerate(super().batches(samples_seen)):
            yield batch | {"num_bad": int(index < self.until)}


def test_too_many_bad_samples_are_refused_once_there_is_something_to_judge(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, ToyTask(0.0), Spoiled(10**6), steps=40, max_bad_fraction=0.1)
    with pytest.raises(UserError, match=r"50 of the first 200 samples .*max_bad_fraction"):
        trainer.fit()
    with pytest.raises(UserError, match=r"6 of the first 24 samples"):  # a short run is judged at its end
        toy_trainer(tmp_path / "short", ToyTask(0.0), Spoiled(10**6), steps=3, max_bad_fraction=0.1).fit()


def test_bad_samples_are_counted_across_a_resume(tmp_path: Path) -> None:
    for steps in (4, 12):
        result = toy_trainer(tmp_path, ToyTask(0.0), Spoiled(3), steps=steps, max_bad_fraction=0.2).fit()
    assert result.bad_samples == 6  # three before, three after the resume


def test_data_that_fail_stop_the_run_with_their_own_error(tmp_path: Path) -> None:
    class Broken(ToyStream):
        def batches(self, samples_seen: int) -> Iterator[Batch]:
            for index, batch in enumerate(super().batches(samples_seen)):
                if index == 5:
                    raise UserError("The shard a.tar vanished; put it back.")
                yield batch

    with pytest.raises(UserError, match=r"a\.tar vanished"):
        toy_trainer(tmp_path, ToyTask(0.0), Broken()).fit()


def test_bf16_computes_in_bf16_over_float32_weights(tmp_path: Path) -> None:
    run_job(tmp_path / "fp32", dropout=0.0)
    _, task = run_job(tmp_path / "bf16", dropout=0.0, precision="bf16")
    assert all(parameter.dtype == torch.float32 for parameter in task.parameters())
    exact, rounded = losses_of(tmp_path / "fp32"), losses_of(tmp_path / "bf16")
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)


def test_progress_hears_of_every_step(tmp_path: Path) -> None:
    class Heard:
        def __init__(self) -> None:
            self.calls: list[tuple] = []

        def start(self, total_steps: int, step: int, description: str) -> None:
            self.calls.append(("start", total_steps, step))

        def update(self, step: int, metrics: Mapping[str, float]) -> None:
            self.calls.append(("update", step))
            assert metrics["train/loss"] > 0 and metrics["train/samples_per_second"] > 0

        def finish(self) -> None:
            self.calls.append(("finish",))

    progress = Heard()
    toy_trainer(tmp_path, ToyTask(0.0), ToyStream(), steps=3, progress=progress).fit()
    assert progress.calls == [("start", 3, 0), *[("update", step) for step in (1, 2, 3)], ("finish",)]


def test_reopened_metrics_drop_later_lines_and_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": step / 3})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 4, "tra')
    MetricsWriter(path, 2).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_tensorboard_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install vlmkit\[track\]"):
        MetricsWriter(tmp_path / "metrics.jsonl", 0, tmp_path / "board")


def test_random_state_survives_its_own_bytes() -> None:
    cpu = torch.device("cpu")
    rng.seed_everything(3, rank=1, step=9)
    state = rng.capture(cpu)

    def draw() -> tuple:
        return torch.rand(4).tolist(), np.random.randn(3).tolist(), random.gauss(0, 1), random.random()

    first = draw()
    rng.restore(state, cpu)
    assert draw() == first
    rng.seed_everything(3, rank=0, step=9)
    assert draw() != first
