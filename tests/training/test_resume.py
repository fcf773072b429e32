"""A killed or stopped run, resumed in another process, is the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy_task
from safetensors.torch import load_file
from toy_task import losses_of, metrics_of, run_job

from vlmkit.training.signals import StopSignals

JOBS = {
    "sync": {"event": (11, signal.SIGKILL), "asynchronous": False},
    "async": {"event": (9, signal.SIGKILL), "asynchronous": True},  # while the checkpoint of step 8 may be half written
    "sigterm": {"event": (5, signal.SIGTERM), "whole_group": True, "asynchronous": True},
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of runs that were killed or told to stop, one per job, in forks of one other process."""
    root = tmp_path_factory.mktemp("stopped")
    jobs = [{"run": str(root / name), "workers": 2, **job} for name, job in JOBS.items()]
    subprocess.run([sys.executable, toy_task.__file__, json.dumps(jobs)], check=True, timeout=120)
    return root


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("straight")
    run_job(run)
    return run


def assert_same_run(run: Path, straight: Path) -> None:
    assert metrics_of(run) == metrics_of(straight)
    mine, reference = load_file(run / "final.safetensors"), load_file(straight / "final.safetensors")
    assert mine.keys() == reference.keys()
    assert any(name.startswith("optim.") for name in mine) and "model.targets_seen" in mine
    assert [name for name in mine if not mine[name].equal(reference[name])] == []


@pytest.mark.parametrize("job", ["sync", "async"])
def test_killed_and_resumed_equals_straight(stopped: Path, straight: Path, job: str) -> None:
    run = stopped / job
    assert (run / "exit_code").read_text() == "-9"
    assert len(losses_of(run)) == JOBS[job]["event"][0] - 1
    result, _ = run_job(run, workers=2, asynchronous=JOBS[job]["asynchronous"])
    assert (result.step, result.samples_seen, result.interrupted) == (20, 160, None)
    assert_same_run(run, straight)


def test_sigterm_finishes_the_step_saves_and_returns(stopped: Path, straight: Path) -> None:
    run = stopped / "sigterm"
    assert (run / "exit_code").read_text() == "0"
    assert json.loads((run / "result.json").read_text())["interrupted"] == signal.SIGTERM
    assert len(losses_of(run)) == 5 and (run / "checkpoints/step-00000005").is_dir()
    run_job(run, workers=2)
    assert_same_run(run, straight)


def test_sigint_does_too_and_the_next_one_interrupts(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)  # a process of its own, whatever tests before this one left behind
    before = signal.getsignal(signal.SIGINT)
    result, _ = run_job(tmp_path, event=(7, signal.SIGINT))
    assert result.interrupted == signal.SIGINT and result.step == 7
    assert signal.getsignal(signal.SIGINT) == before
    run_job(tmp_path)
    assert_same_run(tmp_path, straight)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background are born deaf to it
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.received == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_finished_run_is_left_as_it_is(straight: Path) -> None:
    before = (straight / "metrics.jsonl").read_text()
    result, task = run_job(straight)
    assert result.step == task.steps_seen == 20 and "val/loss" in result.metrics
    assert (straight / "metrics.jsonl").read_text() == before


def test_more_steps_go_on_from_the_end(tmp_path: Path) -> None:
    run_job(tmp_path, steps=8)
    before = losses_of(tmp_path)
    result, task = run_job(tmp_path, steps=12)
    assert result.step == task.steps_seen == 12
    # The schedule knows its length: had the first steps been trained again, their losses would have changed.
    assert losses_of(tmp_path)[:8] == before and len(losses_of(tmp_path)) == 12


def test_a_loader_that_draws_from_the_global_generator_does_not_shift_dropout(tmp_path: Path) -> None:
    run_job(tmp_path / "straight", leaky=True)
    run_job(tmp_path / "resumed", leaky=True, event=(10, signal.SIGTERM))
    run_job(tmp_path / "resumed", leaky=True)
    assert_same_run(tmp_path / "resumed", tmp_path / "straight")
    assert len(set(losses_of(tmp_path / "straight"))) == 20


def test_dropout_is_alive_and_follows_the_seed(straight: Path, tmp_path: Path) -> None:
    """Without this the tests above could pass by ignoring the random-number state."""
    run_job(tmp_path, seed=1)
    assert losses_of(tmp_path)[0] != losses_of(straight)[0]
