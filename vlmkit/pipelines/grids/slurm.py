"""A grid as a job array of Slurm: the script, never its submission."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmkit.runs import write_atomically

SAVING_SECONDS = 120
"""How long before a job's time is up it is told to save its state and stop."""


def write_array_script(
    path: Path, command: Sequence[str], indices: Sequence[int], options: Mapping[str, str | int], at_once: int | None
) -> str:
    """Write a script that runs ``vlmkit *command --cell INDEX`` for each index, a task of the array each; returns the
    command that submits it.

    ``options`` are sbatch's by long name; ``at_once`` limits the tasks that run at the same time. Logs go to a folder
    beside the script. The tasks compute in today's working directory, with this Python.
    """
    logs = path.parent.resolve() / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    headers = {
        "job-name": f"vlmkit-{path.parent.resolve().name}",
        "array": ",".join(map(str, indices)) + (f"%{at_once}" if at_once else ""),
        "output": str(logs / "%a.log"),
        "open-mode": "append",
        "signal": f"B:TERM@{SAVING_SECONDS}",
        **options,
    }
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in headers.items()),
        "",
        f"cd {shlex.quote(os.getcwd())} || exit",
        # In place of the shell, so that the signal reaches the run.
        f'exec {shlex.join([sys.executable, "-m", "vlmkit", *command])} --cell "$SLURM_ARRAY_TASK_ID"',
    ]
    write_atomically(path, "\n".join(lines) + "\n")
    return shlex.join(["sbatch", str(path)])
