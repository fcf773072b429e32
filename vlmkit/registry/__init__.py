"""What exists, as facts: vision towers, language models, compressors, datasets, benchmarks. No behaviour, no torch.

Adding an entry touches one list, in ``models`` or ``data``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from vlmkit.errors import UserError
from vlmkit.registry import data, models
from vlmkit.registry.facts import (
    CLIP_MEAN,
    CLIP_STD,
    CONTEXTUAL_FRACTION,
    EMBEDDED_VOCAB_SIZE,
    PAPER_LEVELS,
    BenchmarkFacts,
    BenchmarkSet,
    CompressorFacts,
    DatasetFacts,
    LLMFacts,
    VisionTowerFacts,
    level_blocks,
)

__all__ = [
    "BENCHMARKS",
    "BENCHMARK_SETS",
    "CLIP_MEAN",
    "CLIP_STD",
    "COMPRESSORS",
    "CONTEXTUAL_FRACTION",
    "DATASETS",
    "EMBEDDED_VOCAB_SIZE",
    "LLMS",
    "PAPER_LEVELS",
    "VISION_TOWERS",
    "BenchmarkFacts",
    "BenchmarkSet",
    "CompressorFacts",
    "DatasetFacts",
    "LLMFacts",
    "VisionTowerFacts",
    "benchmark",
    "benchmark_set",
    "compressor",
    "is_llm",
    "level_blocks",
    "llm",
    "llm_aliases",
    "vision_tower",
]

FactsT = TypeVar("FactsT", VisionTowerFacts, LLMFacts, CompressorFacts, DatasetFacts, BenchmarkFacts, BenchmarkSet)


def _index(entries: Iterable[FactsT]) -> dict[str, FactsT]:
    table: dict[str, FactsT] = {}
    for entry in entries:
        if entry.name.lower() in table:
            raise RuntimeError(f"two registry entries are named {entry.name}")
        table[entry.name.lower()] = entry
    return table


VISION_TOWERS = _index(models.TOWERS)
LLMS = _index(models.LLMS)
COMPRESSORS = _index(models.COMPRESSORS)
DATASETS = _index(data.DATASETS)
BENCHMARKS = _index(data.BENCHMARKS)
BENCHMARK_SETS = _index(data.BENCHMARK_SETS)


def _find(table: Mapping[str, FactsT], kind: str, name: str) -> FactsT:
    try:
        return table[name.lower()]
    except KeyError:
        near = difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.4) or list(table)
        names = ", ".join(table[key].name for key in near)
        raise UserError(
            f"There is no {kind} named {name!r}; did you mean {names}? `vlmkit models` lists all."
        ) from None


def vision_tower(name: str) -> VisionTowerFacts:
    """Facts of a vision tower by name (any case); a UserError names the nearest ones."""
    return _find(VISION_TOWERS, "vision tower", name)


def llm(name: str) -> LLMFacts:
    """Facts of a language model by name or size alias (``7b``: the papers' Qwen1.5 family)."""
    return _find(LLMS, "language model", models.LLM_ALIASES.get(name.lower(), name))


def is_llm(name: str) -> bool:
    """Whether ``name`` is a registry name or alias, as opposed to a path or hub id."""
    return name.lower() in LLMS or name.lower() in models.LLM_ALIASES


def llm_aliases() -> dict[str, str]:
    """Short names and the registry names they stand for."""
    return dict(models.LLM_ALIASES)


def compressor(name: str) -> CompressorFacts:
    """Facts of a compressor by name."""
    return _find(COMPRESSORS, "compressor", name)


def benchmark(name: str) -> BenchmarkFacts:
    """Facts of a benchmark by name."""
    return _find(BENCHMARKS, "benchmark", name)


def benchmark_set(name: str) -> BenchmarkSet:
    """The benchmarks of a family by its name."""
    return _find(BENCHMARK_SETS, "set of benchmarks", name)
