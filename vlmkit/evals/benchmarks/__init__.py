"""Benchmarks, one file each; found by the name of a task."""

from __future__ import annotations

from collections.abc import Callable

from vlmkit.errors import UserError
from vlmkit.evals.benchmarks.benchmark import Benchmark, Question
from vlmkit.evals.benchmarks.llava_json import open_llava_json
from vlmkit.evals.benchmarks.miniworld import DEFAULT_SPEC, open_miniworld

_OPENERS: dict[str, Callable[[str], Benchmark]] = {"miniworld": open_miniworld, "llava": open_llava_json}


def open_benchmark(task: str) -> Benchmark:
    """The benchmark that a task names: ``miniworld``, ``miniworld:SPLIT?scenes=N...`` or ``llava:FILE``.

    Raises UserError for any other task, and where the data cannot be opened.
    """
    kind, _, where = task.partition(":")
    if kind not in _OPENERS:
        raise UserError(
            f"'{task}' is not a benchmark for VLMs; choose miniworld, miniworld:SPLIT?scenes=N or llava:FILE."
        )
    if not where:
        if kind != "miniworld":
            raise UserError(f"'{task}' names no data; write llava:FILE, a JSON file in LLaVA's form.")
        task = DEFAULT_SPEC
    return _OPENERS[kind](task)


__all__ = ["Benchmark", "Question", "open_benchmark"]
