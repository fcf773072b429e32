"""Runs that end early and are started again, by the command line or elsewhere, end as the uninterrupted run did."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_recipes import TRAIN, Crash, CrashAt, metrics_of, pretrain_recipe

from vlmkit.cli.app import app
from vlmkit.config import PretrainRecipe
from vlmkit.pipelines.pretrain import pretrain
from vlmkit.training.checkpoint import whole_checkpoints

STEPS = {"pretrain-superclass": 12, "train-vlm": 60}
KILLED_AFTER = {"pretrain-superclass": 4, "train-vlm": 20}


def arguments(kind: str, out: Path, tower: Path) -> list[str]:
    section = "train" if kind == "pretrain-superclass" else "finetune"
    settings = {
        "steps": STEPS[kind],
        "global_batch_size": 16,
        "num_workers": 2,
        "log.every_steps": 1,
        "checkpoint.every_steps": 3,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{section}.{key}={value}")]
    model = ["--llm", "nano", "--tokens", "4", "--stage", "finetune", "--vision-tower", str(tower)]
    data = ["--data", "miniworld:train?scenes=80", "--val", "none"]
    return [kind, "--out", str(out), *data, *sets, *(model if kind == "train-vlm" else [])]


def lines_of(run: Path) -> list[str]:
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def kill_at(step: int, command: list[str], run: Path) -> None:
    """Run a command and kill it, and its loader workers, once ``step`` steps are logged and a checkpoint is whole."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmkit", *command], stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(lines_of(run)) < step or not whole_checkpoints(run / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, 9)
    assert process.wait() == -9


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("pretrain-superclass", marks=pytest.mark.slow),
        pytest.param("train-vlm", marks=pytest.mark.dist),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(kind: str, tmp_path: Path, tower_run: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    step = KILLED_AFTER[kind] + random.Random(os.getpid()).randrange(5)
    kill_at(step, arguments(kind, killed, tower_run), killed)
    assert not (killed / "model").exists()
    for run in (straight, killed):
        app(arguments(kind, run, tower_run), standalone_mode=False)

    losses = [[json.loads(line)["train/loss"] for line in lines_of(run)] for run in (straight, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS[kind]
    files = {path.relative_to(straight / "model") for path in (straight / "model").rglob("*.safetensors")}
    assert files
    for file in files:  # weights, and for a tower the token counters
        mine, theirs = load_file(killed / "model" / file), load_file(straight / "model" / file)
        assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine), file


def moved_recipe(**train: object) -> PretrainRecipe:
    """Ten steps over epochs of five."""
    section = {**TRAIN, "steps": 10, "checkpoint": {"every_steps": 3}, **train}
    return pretrain_recipe(**{"data.train": "miniworld:train?scenes=80", "data.val": None, "train": section})


@pytest.fixture(scope="module")
def crashed_and_straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that crashed after step 4, with its checkpoint in the middle of an epoch, and one that did not."""
    root = tmp_path_factory.mktemp("moved")
    with pytest.raises(Crash):
        pretrain(moved_recipe(), root / "crashed", CrashAt(4))
    assert [path.name for path in whole_checkpoints(root / "crashed" / "checkpoints")] == ["step-00000003"]
    pretrain(moved_recipe(), root / "straight")
    return root / "crashed", root / "straight"


def test_a_run_goes_on_exactly_with_other_workers_and_another_cadence(
    crashed_and_straight: tuple[Path, Path], tmp_path: Path
) -> None:
    crashed, straight = crashed_and_straight
    run = tmp_path / "run"
    shutil.copytree(crashed, run)
    pretrain(moved_recipe(num_workers=2, checkpoint={"every_steps": 4}), run)
    assert metrics_of(run, "train/loss") == metrics_of(straight, "train/loss")
    for file in ("open_clip_model", "superclass_head", "token_counts"):
        mine, theirs = (load_file(path / "model" / f"{file}.safetensors") for path in (run, straight))
        assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine), file


@pytest.mark.dist
def test_a_run_of_one_process_goes_on_with_two(crashed_and_straight: tuple[Path, Path], tmp_path: Path) -> None:
    crashed, straight = crashed_and_straight
    run = tmp_path / "run"
    shutil.copytree(crashed, run)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    job = [[moved_recipe(micro_batch_size=4).model_dump(mode="json"), str(run)]]
    script = str(Path(__file__).with_name("run_jobs.py"))
    subprocess.run([*torchrun, script, json.dumps(job)], check=True, timeout=200)
    expected = metrics_of(straight, "train/loss")
    losses = metrics_of(run, "train/loss")
    assert losses[:3] == expected[:3] and losses == pytest.approx(expected, rel=1e-5) and len(losses) == 10
    mine, theirs = (load_file(path / "model" / "token_counts.safetensors") for path in (run, straight))
    assert int(mine["num_documents"]) == 160 and all(mine[name].equal(theirs[name]) for name in mine)
