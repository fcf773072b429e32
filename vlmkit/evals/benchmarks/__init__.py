"""Benchmarks, one file each; found by the name of a task."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmkit.errors import UserError
from vlmkit.evals.benchmarks.ai2d import AI2D
from vlmkit.evals.benchmarks.benchmark import Benchmark, Question
from vlmkit.evals.benchmarks.chartqa import CHARTQA
from vlmkit.evals.benchmarks.coco_captions import COCO_CAPTIONS
from vlmkit.evals.benchmarks.docvqa import DOCVQA
from vlmkit.evals.benchmarks.gqa import GQA
from vlmkit.evals.benchmarks.infovqa import INFOVQA
from vlmkit.evals.benchmarks.llava_json import open_llava_json
from vlmkit.evals.benchmarks.mathvista import MATHVISTA
from vlmkit.evals.benchmarks.miniworld import DEFAULT_SPEC, open_miniworld
from vlmkit.evals.benchmarks.mmbench_en_dev import MMBENCH_EN_DEV
from vlmkit.evals.benchmarks.mme import MME
from vlmkit.evals.benchmarks.mmmu import MMMU
from vlmkit.evals.benchmarks.ocrbench import OCRBENCH
from vlmkit.evals.benchmarks.pope import POPE
from vlmkit.evals.benchmarks.scienceqa_img import SCIENCEQA_IMG
from vlmkit.evals.benchmarks.seedbench import SEEDBENCH
from vlmkit.evals.benchmarks.table import TableBenchmark
from vlmkit.evals.benchmarks.textvqa import TEXTVQA
from vlmkit.evals.benchmarks.vizwiz_vqa import VIZWIZ_VQA
from vlmkit.evals.benchmarks.vqav2 import VQAV2

TABLE_BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        GQA,
        VQAV2,
        VIZWIZ_VQA,
        TEXTVQA,
        SCIENCEQA_IMG,
        POPE,
        MME,
        MMBENCH_EN_DEV,
        SEEDBENCH,
        MMMU,
        AI2D,
        MATHVISTA,
        CHARTQA,
        DOCVQA,
        INFOVQA,
        OCRBENCH,
        COCO_CAPTIONS,
    )
}
"""The benchmarks that are published tables, by name."""

_OPENERS: dict[str, Callable[[str], Benchmark[Any]]] = {"miniworld": open_miniworld, "llava": open_llava_json}


def open_benchmark(task: str, directory: Path | None = None) -> Benchmark[Any]:
    """The benchmark that a task names: one of TABLE_BENCHMARKS, ``miniworld``, ``miniworld:SPLIT?scenes=N...`` or
    ``llava:FILE``. ``directory`` is where tables are found, as ``DIRECTORY/NAME`` (None: in the cache).

    Raises UserError for any other task, and where the data cannot be opened.
    """
    kind, colon, where = task.partition(":")
    if kind in TABLE_BENCHMARKS and not colon:
        return TABLE_BENCHMARKS[kind].open(directory)
    if kind not in _OPENERS:
        raise UserError(_unknown(task))
    if not where:
        if kind != "miniworld":
            raise UserError(f"'{task}' names no data; write llava:FILE, a JSON file in LLaVA's form.")
        task = DEFAULT_SPEC
    return _OPENERS[kind](task)


def table_benchmark(name: str) -> TableBenchmark:
    """The benchmark of a name. Raises UserError, with the nearest names, if it is none of a published table."""
    if name not in TABLE_BENCHMARKS:
        raise UserError(_unknown(name))
    return TABLE_BENCHMARKS[name]


def _unknown(task: str) -> str:
    names = ["miniworld", "llava:FILE", *TABLE_BENCHMARKS]
    longer = [name for name in names if name.startswith(task.lower())] if task else []
    near = longer or difflib.get_close_matches(task.lower(), names, n=3, cutoff=0.5)
    choice = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}."
    return f"'{task}' is not a benchmark for VLMs; {choice}"


__all__ = [
    "TABLE_BENCHMARKS",
    "Benchmark",
    "Question",
    "TableBenchmark",
    "open_benchmark",
    "table_benchmark",
]
