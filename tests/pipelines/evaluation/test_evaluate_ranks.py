"""``vlmkit eval`` on a VLM in two processes, and killed and started again: byte for byte the records of one process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmkit.pipelines.evaluation.evaluate import EvalSettings, evaluate
from vlmkit.runs import RunDirectory

TASK = "miniworld:test?scenes=40"
OPTIONS = ["--tasks", TASK, "--batch-size", "2", "--device", "cpu"]
SECONDS = 300


@pytest.fixture(scope="module")
def evaluated(vlm_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated by one process, without a break."""
    out = copy(vlm_run, tmp_path_factory.mktemp("whole") / "run")
    evaluate(out, [TASK], EvalSettings(batch_size=2, device="cpu"))
    return out


def copy(run: Path, out: Path) -> Path:
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("samples", "results.jsonl"))
    return out


def answers(run: Path) -> list[str]:
    """The lines of the records, without the time they took."""
    lines = (run / "samples" / "miniworld.jsonl").read_text().splitlines()
    return [json.dumps({**json.loads(line), "seconds": None}) for line in lines]


def assert_same(run: Path, other: Path) -> None:
    assert answers(run) == answers(other) and len(answers(run)) > 100
    assert RunDirectory(run).results() == RunDirectory(other).results()
    assert {path.name for path in (run / "samples").iterdir()} == {"miniworld.jsonl", "miniworld.json"}


@pytest.mark.dist
def test_two_ranks_write_the_records_of_one(evaluated: Path, vlm_run: Path, tmp_path: Path) -> None:
    run = copy(vlm_run, tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, "-m", "vlmkit", "eval", str(run), *OPTIONS], check=True, timeout=SECONDS)
    assert_same(run, evaluated)


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_records_of_one_that_was_not(
    evaluated: Path, vlm_run: Path, tmp_path: Path
) -> None:
    run = copy(vlm_run, tmp_path / "run")
    log = run / "samples" / ".miniworld.rank0.jsonl"
    with subprocess.Popen([sys.executable, "-m", "vlmkit", "eval", str(run), *OPTIONS]) as process:
        deadline = time.monotonic() + SECONDS
        while not (log.is_file() and log.read_bytes().count(b"\n") > 2):
            assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.01)
        process.kill()
    before = log.read_bytes()
    assert not (run / "samples" / "miniworld.jsonl").exists()
    evaluate(run, [TASK], EvalSettings(batch_size=2, device="cpu"))
    assert before.count(b"\n") > 2
    assert_same(run, evaluated)
