"""Either stage, killed with SIGKILL and started again by the command line, ends as the uninterrupted run did."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vlmkit.cli.app import app
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


@pytest.mark.parametrize("kind", ["pretrain-superclass", "train-vlm"])
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
