"""The pool of runs: what becomes of the others when one of them ends badly."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from vlmkit.errors import UserError
from vlmkit.pipelines.grid import run_grid


def die(out: Path, number: int) -> None:
    """A run whose process is killed, as by the kernel when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail_unless_even(out: Path, number: int) -> None:
    if number % 2:
        raise UserError(f"{number} is odd")
    out.mkdir(parents=True)


def test_a_killed_process_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was killed, perhaps for want of memory; the same command goes on"):
        run_grid({"a": (0,), "b": (1,)}, die, 2, tmp_path, jobs=1)


@pytest.mark.slow
def test_a_run_that_fails_is_named_after_the_others_have_ended(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^b failed: 1 is odd$"):
        run_grid({"a": (0,), "b": (1,), "c": (2,)}, fail_unless_even, 3, tmp_path, jobs=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
