"""Timing on the machine at hand: rounds through all candidates in turn, CUDA graphs, and the name of the hardware."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

Name = TypeVar("Name")


def interleaved_seconds(
    candidates: Mapping[Name, Callable[[], object]],
    repeats: int,
    device: torch.device,
    before: Callable[[Name], object] = lambda name: None,
) -> dict[Name, list[float]]:
    """Seconds of each run of each candidate: one round to warm up, then ``repeats`` rounds through all of them.

    A round runs every candidate once, so that whatever else the machine does falls on all alike. ``before`` is called
    ahead of every run, the warm-up's too, and not timed.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in candidates}
    for measured in [False] + [True] * repeats:
        for name, run in candidates.items():
            before(name)
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if measured:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class Replay:
    """What a call does on the GPU, captured as a CUDA graph: called, it is done again without Python or launches.

    ``prepare`` is called ahead of each run of ``run``, that is twice: a first run picks kernels and loads libraries, as
    no capture may. What it returns is kept as long as the replay, which reads the same memory again. ``pool`` is where
    the graphs keep what they make: those of one pool must not be replayed at the same time. Raises RuntimeError where
    the call cannot be captured, because the CPU waits for the GPU in it.
    """

    def __init__(self, run: Callable[[], object], prepare: Callable[[], object], pool: Any) -> None:
        prepare()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()
        torch.cuda.synchronize()
        self._held = prepare()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            run()

    def __call__(self) -> None:
        self._graph.replay()


def hardware(device: torch.device) -> str:
    """The accelerator's name, or the processor's and how many of its cores are here."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def synchronize(device: torch.device) -> None:
    """Wait until all that was started on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
