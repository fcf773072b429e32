"""Where numbers go: metrics.jsonl always, TensorBoard on request, and whoever displays progress."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from vlmkit.errors import UserError


class Progress(Protocol):
    """A display of training, called on rank 0 only. ``metrics`` are the latest known, by name."""

    def start(self, total_steps: int, step: int, description: str) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """The progress display that shows nothing."""

    def start(self, total_steps: int, step: int, description: str) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self) -> None: ...


class MetricsWriter:
    """Appends lines ``{"step": ..., name: value, ...}`` to metrics.jsonl, flushed one by one. For rank 0.

    Opening it at ``step`` drops the lines of later steps, which a resumed run will write again, and a line cut short
    by a killed process.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, step: int, tensorboard: Path | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _truncate(path, step)
        self._board = None
        if tensorboard is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError(
                    "log.tensorboard is on, but the tensorboard package is missing; `pip install vlmkit[track]`, "
                    "or turn it off."
                ) from error
            self._board = SummaryWriter(str(tensorboard), purge_step=step + 1)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _truncate(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break  # only the last line can be cut short
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_text("".join(kept), encoding="utf-8")
    scratch.replace(path)


def memory_gb(device: torch.device) -> float:
    """Peak memory of this process in GB: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
