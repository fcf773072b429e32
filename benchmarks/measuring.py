"""What the benchmarks share: exact peak memory, FLOPs, and the result files."""

from __future__ import annotations

import datetime
import json
import re
import statistics
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, addmm_flop

from vlmkit.pipelines.timing import hardware, synchronize

RESULTS = Path(__file__).parent / "results"


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


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that ``run`` asks for, compiled or not.

    They are those of the model: what a fused attention computes again in its backward pass does not count.
    """
    adds_in_place = {torch.ops.aten.addmm_: addmm_flop}
    with (
        torch.compiler.set_stance("force_eager"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=adds_in_place) as counter,
    ):
        run()
    return counter.get_total_flops()


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], None], int]:
    """Products of random square matrices, as fast as they come on this device, and their floating-point operations."""
    side, times = (8192, 10) if device.type == "cuda" else (1024, 4)
    left, right = torch.randn(2, side, side, device=device, dtype=dtype)
    out = torch.empty_like(left)

    def multiply() -> None:
        for _ in range(times):
            torch.mm(left, right, out=out)

    return multiply, times * 2 * side**3


def kernel_table(run: Callable[[], object], device: torch.device, repeats: int = 3, rows: int = 40) -> str:
    """The ``rows`` kernels that ``repeats`` runs spend most of the device's time in; on a CPU, operators."""
    on_cuda = device.type == "cuda"
    run()
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as recorded:
        for _ in range(repeats):
            run()
        synchronize(device)
    by = f"self_{'device' if on_cuda else 'cpu'}_time_total"
    return recorded.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=120)


def write_results(
    theme: str,
    device: torch.device,
    settings: Mapping[str, Any],
    rows: list[dict[str, Any]],
    profiles: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write ``results/THEME-HARDWARE-DATE`` as .json, with every value, and .md, with lists as their medians; beside
    them each of the ``profiles`` as ``-NAME.txt``."""
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
    for name, text in (profiles or {}).items():
        files.append(path.with_name(f"{path.name}-{name}.txt"))
        files[-1].write_text(text + "\n")
    return files


def _cell(value: object) -> str:
    if isinstance(value, list):
        value = statistics.median(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
