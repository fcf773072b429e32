"""The pool of runs: what becomes of the others when one of them, or the whole grid, ends badly."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmkit.errors import UserError
from vlmkit.pipelines.grids.grid import run_grid

PATIENCE = 120.0
"""Seconds: two interpreters that import torch start in a few on an idle machine."""


def die(out: Path, number: int) -> None:
    """A run whose process is killed, as by the kernel when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail_unless_even(out: Path, number: int) -> None:
    if number % 2:
        raise UserError(f"{number} is odd")
    out.mkdir(parents=True)


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"nothing came of it in {seconds:.0f} s"
        time.sleep(0.1)


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_killed_process_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was killed, perhaps for want of memory; the same command goes on"):
        run_grid({"a": (0,), "b": (1,)}, die, 2, tmp_path, jobs=1)


@pytest.mark.slow
def test_a_run_that_fails_is_named_after_the_others_have_ended(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^b failed: 1 is odd$"):
        run_grid({"a": (0,), "b": (1,), "c": (2,)}, fail_unless_even, 3, tmp_path, jobs=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_run_outlives_the_grid(number: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("sleeping_grid.py")
    grid = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        wait_until((tmp_path / "a" / "begun").exists, PATIENCE)
        grid.send_signal(number)
        said, _ = grid.communicate(timeout=PATIENCE)
    finally:
        grid.kill()
    wait_until(lambda: is_free(tmp_path / "a" / "lock"), 20)
    assert not (tmp_path / "b").exists(), "no other run begins"
    if number == signal.SIGKILL:
        assert not (tmp_path / "a" / "saved").exists()
    else:
        assert grid.returncode == 128 + number and "the same command goes on" in said
        assert (tmp_path / "a" / "saved").exists(), "a run that is asked to stop may save its state"
