"""What the benchmarks share: interleaved timing, exact peak memory, the machine's name, and the result files."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).parent / "results"


def interleaved_seconds(
    candidates: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each run of each candidate: one round to warm up, then ``repeats`` rounds through all of them.

    A round runs every candidate once, so that whatever else the machine does falls on all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for measured in [False] + [True] * repeats:
        for name, run in candidates.items():
            _synchronize(device)
            start = time.perf_counter()
            run()
            _synchronize(device)
            if measured:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors made by ``run`` hold at once, as the allocator counts them.

    ``run`` must free nothing that was there before it: that would be taken off.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    events = (event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]")
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def hardware(device: torch.device) -> str:
    """The accelerator's name, or the processor's and how many of its cores are here."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def write_results(
    theme: str, device: torch.device, settings: Mapping[str, Any], rows: list[dict[str, Any]]
) -> list[Path]:
    """Write ``results/THEME-HARDWARE-DATE`` as .json, with every value, and .md, with lists as their medians."""
    about = {
        "hardware": hardware(device),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        **settings,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", about["hardware"].lower()).strip("-")
    path = RESULTS / f"{theme}-{slug}-{about['date']}"
    RESULTS.mkdir(exist_ok=True)
    table = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    table += [" | ".join(_cell(value) for value in row.values()) for row in rows]
    facts = "\n".join(f"- {name}: {value}" for name, value in about.items())
    files = [path.with_suffix(suffix) for suffix in (".json", ".md")]
    files[0].write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    files[1].write_text(f"# {theme}\n\n{facts}\n\n" + "\n".join(f"| {line} |" for line in table) + "\n")
    return files


def _cell(value: object) -> str:
    if isinstance(value, list):
        value = statistics.median(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
