"""What a command is about to do, in words, before it does it; and what the machine at hand can hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vlmkit.config import TrainConfig
from vlmkit.errors import UserError

TRAINED_BYTES = 16
"""Bytes for each trained weight: float32 weight, gradient, and two AdamW moments."""
FROZEN_BYTES = 4
"""Bytes for each frozen weight (float32)."""


@dataclass(frozen=True)
class Plan:
    """Named facts in reading order, and what keeps the plan from running here, if anything does."""

    title: str
    facts: tuple[tuple[str, str], ...]
    obstacle: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The numbers behind the facts, for programs: bytes, FLOPs, counts."""

    def require(self) -> None:
        """Raise the obstacle as a UserError."""
        if self.obstacle:
            raise UserError(self.obstacle)

    def as_json(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return {"command": self.title, "facts": dict(self.facts), "obstacle": self.obstacle, **self.figures}


def memory_here(device: str) -> tuple[int, str]:
    """(bytes free, where): of the GPU that training would use, or of this machine."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], torch.cuda.get_device_name()
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return _linux_available() or free, "this machine"


def _linux_available() -> int | None:
    """Linux counts reclaimable file cache as available, which plain free pages leave out."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return int(lines["MemAvailable"].split()[0]) * 1024


def model_bytes(trained: int, frozen: int, train: TrainConfig, world_size: int) -> int:
    """Bytes of weights, gradients and optimizer state on each rank; activations come on top."""
    shards = world_size if train.parallel == "fsdp" else 1
    return (trained * TRAINED_BYTES + frozen * FROZEN_BYTES) // shards


def world_size() -> int:
    """Number of processes torchrun started, before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", 1))


def gigabytes(count: float) -> str:
    """Bytes for a reader."""
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


def number(count: float) -> str:
    """A large number for a reader: 7.72 B, 0.85 M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"


def length(train: TrainConfig, num_samples: int) -> str:
    """How long a training section lasts on ``num_samples`` samples."""
    steps = train.total_steps(num_samples)
    samples = steps * train.global_batch_size
    return (
        f"{steps} steps of {train.global_batch_size} samples = {samples} samples ({samples / num_samples:.2f} epochs)"
    )
