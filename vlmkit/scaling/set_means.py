"""Which runs lack which benchmarks of a named set: its mean exists for all of them or for none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlmkit import registry
from vlmkit.errors import UserError


def missing_means(records: Iterable[tuple[Path, Mapping[str, Any], int]]) -> dict[str, str]:
    """For each named set of which some benchmarks were run, but nowhere all: what the models lack, in a sentence.

    ``records`` are result rows, between the run that they are of and its number of visual tokens. Raises UserError,
    saying the same, if some models have the mean of a set and others do not: a law through those that do would be of
    other runs than were given.
    """
    benchmarks: dict[tuple[Path, int], set[str]] = defaultdict(set)
    for origin, record, tokens in records:
        if record.get("benchmark"):
            benchmarks[origin, tokens].add(str(record["benchmark"]))
    missing = {}
    for members in registry.BENCHMARK_SETS.values():
        lacking = {model: _lacking(names, members) for model, names in benchmarks.items() if members.name not in names}
        complete = len(lacking) < len(benchmarks)
        begun = any(not names.isdisjoint(members.benchmarks) for names in benchmarks.values())
        if not lacking or not (complete or begun):
            continue
        models = "; ".join(f"{run} at {tokens} visual tokens {words}" for (run, tokens), words in lacking.items())
        reason = f"the mean is over {len(members.benchmarks)} benchmarks, and {models}"
        if complete:
            raise UserError(
                f"The {members.name} scores of some runs are missing: {reason}; evaluate all on all of them "
                "(`vlmkit eval RUN --tasks ...`), or give the other runs alone."
            )
        missing[members.name] = f"{reason[0].upper()}{reason[1:]}."
    return missing


def _lacking(names: set[str], members: registry.BenchmarkSet) -> str:
    absent = [name for name in members.benchmarks if name not in names]
    return f"lacks {', '.join(absent)}" if absent else "has them with different scoring or --limit"
