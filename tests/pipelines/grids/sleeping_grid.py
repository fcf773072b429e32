"""A grid of two runs that sleep, for tests that stop it: ``sleeping_grid.py OUT``."""

from __future__ import annotations

import fcntl
import sys
import time
from pathlib import Path

from vlmkit.errors import Interrupted
from vlmkit.pipelines.grids.grid import run_grid


def sleep(out: Path) -> None:
    """Hold a lock for as long as this process lives."""
    out.mkdir(parents=True)
    with (out / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (out / "begun").touch()
        try:
            time.sleep(600)
        finally:
            (out / "saved").touch()


if __name__ == "__main__":
    try:
        run_grid({"a": (), "b": ()}, sleep, 2, Path(sys.argv[1]), jobs=1)
    except Interrupted as stop:
        print(stop)
        sys.exit(128 + stop.signum)
