"""Two gloo ranks: the same losses as one process, and the same run after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_task
from safetensors.torch import load_file
from toy_task import losses_of, metrics_of, run_job

pytestmark = pytest.mark.dist
ENGINES = ("ddp", "fsdp")


def torchrun(*jobs: dict[str, Any], ranks: int = 2, check: bool = True) -> str:
    """Run jobs one after another on gloo ranks of this machine; returns what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    result = subprocess.run(
        [*command, toy_task.__file__, json.dumps(jobs)], capture_output=True, text=True, timeout=240, check=False
    )
    assert (result.returncode == 0) == check, result.stderr[-4000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole runs on two ranks: exact ones to compare with one process, and ones with dropout to resume."""
    root = tmp_path_factory.mktemp("runs")
    torchrun(
        *({"run": str(root / f"exact_{engine}"), "parallel": engine, "dropout": 0.0} for engine in ENGINES),
        *({"run": str(root / f"straight_{engine}"), "parallel": engine, "asynchronous": True} for engine in ENGINES),
        {"run": str(root / "bf16"), "parallel": "fsdp", "dropout": 0.0, "precision": "bf16"},
        {"run": str(root / "half"), "parallel": "fsdp", "dropout": 0.0, "event": [10, signal.SIGTERM]},
    )
    return root


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("single")
    run_job(run, dropout=0.0)
    return run


@pytest.mark.parametrize("engine", ENGINES)
def test_two_ranks_give_the_losses_and_the_model_of_one_process(runs: Path, single: Path, engine: str) -> None:
    run = runs / f"exact_{engine}"
    mine, reference = metrics_of(run), metrics_of(single)
    assert [sorted(line) for line in mine] == [sorted(line) for line in reference]
    for line, expected in zip(mine, reference, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    for name in ("final.safetensors", "model/model.safetensors"):
        tensors, expected_tensors = load_file(run / name), load_file(single / name)
        assert tensors.keys() == expected_tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected_tensors[key], rtol=1e-3, atol=1e-5, msg=key)
    assert load_file(run / "final.safetensors")["model.targets_seen"] > 0


def test_one_process_goes_on_from_two_sharded_ranks(runs: Path, single: Path) -> None:
    """Checkpoints reshard: the second half runs alone, with the same order of samples."""
    run = runs / "half"
    assert len(losses_of(run)) == 10
    run_job(run, dropout=0.0)
    assert losses_of(run) == pytest.approx(losses_of(single), rel=1e-5)


def assert_same_run(run: Path, straight: Path) -> None:
    assert metrics_of(run) == metrics_of(straight)
    mine, reference = load_file(run / "final.safetensors"), load_file(straight / "final.safetensors")
    assert [name for name in mine if not mine[name].equal(reference[name])] == []


def test_killed_on_two_ranks_and_resumed_equals_straight(runs: Path, tmp_path: Path) -> None:
    jobs = {
        engine: {"run": str(tmp_path / engine), "parallel": engine, "asynchronous": True, "workers": 2}
        for engine in ENGINES
    }
    for engine in ENGINES:
        torchrun(jobs[engine] | {"event": [11, signal.SIGKILL]}, check=False)
        assert 8 <= len(losses_of(tmp_path / engine)) <= 10
    torchrun(*jobs.values())
    for engine in ENGINES:
        assert_same_run(tmp_path / engine, runs / f"straight_{engine}")


def test_ddp_on_four_ranks_resumes_bit_for_bit(tmp_path: Path) -> None:
    """From three ranks on, the order of a sum depends on how DDP lays out its buckets."""
    straight, stopped = {"run": str(tmp_path / "straight")}, {"run": str(tmp_path / "stopped")}
    torchrun(straight, stopped | {"event": [9, signal.SIGTERM]}, stopped, ranks=4)
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")


def test_bf16_under_fsdp_keeps_float32_weights(runs: Path, single: Path) -> None:
    losses = losses_of(runs / "bf16")
    assert losses != losses_of(single) and losses == pytest.approx(losses_of(single), rel=0.03)
    tensors = load_file(runs / "bf16/final.safetensors") | load_file(runs / "bf16/model/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}
    head = tensors["head.weight"]
    assert not head.equal(head.bfloat16().float())


def test_an_error_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    output = torchrun({"run": str(tmp_path), "poison_at": 5}, check=False)
    assert output.count("The loss became nan at step 5") >= 2
