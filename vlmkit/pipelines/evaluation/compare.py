"""Several evaluated runs beside each other: what each scored, and how far it differs from the first. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from vlmkit.errors import UserError
from vlmkit.evals.records import RecordsFile
from vlmkit.evals.rows import Estimate, estimates
from vlmkit.evals.scoring import RULES, rule
from vlmkit.evals.scoring.case import Scoring, score_cases
from vlmkit.runs import ResultRow, RunDirectory


@dataclass(frozen=True)
class Difference:
    """How much a run scored above the first one on the same questions, with the standard error of that."""

    value: float
    stderr: float


@dataclass(frozen=True)
class ComparedRow:
    """One measurement with its rows by run, and the paired differences of later runs to the first where known."""

    rows: Mapping[str, ResultRow]
    differences: Mapping[str, Difference]

    @property
    def measured(self) -> ResultRow:
        """Any of the rows: what was measured is the same for all."""
        return next(iter(self.rows.values()))


@dataclass(frozen=True)
class Comparison:
    """The measurements of several runs, towers and VLMs alike, in order of first appearance."""

    runs: tuple[str, ...]
    lines: tuple[ComparedRow, ...]

    def table(self) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Columns and lines for people: a line a measurement; two columns a run, its score and its difference.

        Scoring, limit and data are told only where they make two lines differ that are alike otherwise.
        """
        first, *others = _short(self.runs)
        columns = ["benchmark", "of", "metric", "tokens", "scoring", "limit", "data", first]
        columns += [column for run in others for column in (run, f"difference to {first}")]
        alike: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        for line in self.lines:
            alike.setdefault(_labels(line.measured), []).append(_protocol(line.measured))
        table = []
        for line in self.lines:
            labels, protocol = _labels(line.measured), _protocol(line.measured)
            told = [
                word if len(set(words)) > 1 else ""
                for word, words in zip(protocol, zip(*alike[labels], strict=True), strict=True)
            ]
            cells = [*labels, *told, _score(line.rows.get(self.runs[0]))]
            for run in self.runs[1:]:
                cells += [_score(line.rows.get(run)), _gain(line.differences.get(run))]
            table.append(tuple(cells))
        return columns, table

    def to_json(self) -> list[dict[str, Any]]:
        """A JSON-ready object for every measurement and run that has it."""
        measured = ("benchmark", "family", "metric", "variant", "visual_tokens", "scoring", "limit", "data_revision")
        numbers = ("value", "stderr", "ci_low", "ci_high", "num_samples", "num_errors")
        found = []
        for line in self.lines:
            for run, row in line.rows.items():
                difference = line.differences.get(run)
                found.append(
                    {
                        **{name: getattr(row, name) for name in measured},
                        "run": run,
                        **{name: getattr(row, name) for name in numbers},
                        "difference": difference.value if difference else None,
                        "difference_stderr": difference.stderr if difference else None,
                    }
                )
        return found


def compare(paths: Sequence[Path]) -> Comparison:
    """The result rows of evaluated runs, beside each other where the same was measured in the same way.

    Runs with records of the same questions are compared question by question: what is easy for both cancels. Raises
    UserError for fewer than two runs, a run given twice, and one without results.
    """
    names = [str(path) for path in paths]
    if len(set(names)) < max(2, len(names)):
        raise UserError("A comparison needs two runs or more, each once; give their directories after --compare.")
    runs = {name: RunDirectory(name) for name in names}
    by_key: dict[tuple[Any, ...], dict[str, ResultRow]] = {}
    for name, run in runs.items():
        if not (results := run.results()):
            raise UserError(f"{name} has no results to compare; evaluate it first (`vlmkit eval {name}`).")
        for row in results:
            by_key.setdefault(row.key, {})[name] = row
    answered = cache(_answered)
    lines = []
    for rows in by_key.values():
        found = {name: answered(runs[name].samples_dir, _what(row)) for name, row in rows.items()}
        lines.append(ComparedRow(rows, _differences(names[0], rows, found)))
    return Comparison(tuple(names), tuple(lines))


class _What(NamedTuple):
    """Which answers a row was counted from."""

    benchmark: str
    data_revision: str
    limit: int | None
    visual_tokens: int | None
    scoring: Scoring
    family: str


class _Answered(NamedTuple):
    """What was asked, question by question, and the numbers of the answers."""

    asked: list[tuple[str, str]]
    numbers: dict[str, Estimate]


def _what(row: ResultRow) -> _What:
    family = row.family or row.variant or row.benchmark
    scoring = cast(Scoring, row.scoring)
    return _What(row.benchmark, row.data_revision, row.limit, row.visual_tokens, scoring, family)


def _answered(samples_dir: Path, what: _What) -> _Answered | None:
    """The numbers of the kept answers, counted anew; None where they are of another evaluation, or none were kept."""
    if what.benchmark not in RULES:
        return None
    for name in (f"{what.benchmark}-{what.visual_tokens}", what.benchmark):
        file = RecordsFile(samples_dir / f"{name}.jsonl")
        about = file.about()
        if about and _is_about(about, what):
            records = [record for record in file.read() if record.family == what.family]
            by = rule(what.benchmark, what.scoring)
            scored = score_cases(by, [record.case() for record in records], what.scoring)
            records = [replace(record, score=case["score"]) for record, case in zip(records, scored, strict=True)]
            return _Answered([(r.id, r.group) for r in records], estimates(by, records, what.scoring))
    return None


def _is_about(about: Mapping[str, Any], what: _What) -> bool:
    tokens = about["model"].get("visual_tokens")
    evaluated = (about["benchmark"], about["data_revision"], about["limit"], tokens)
    return evaluated == (what.benchmark, what.data_revision, what.limit, what.visual_tokens)


def _differences(
    first: str, rows: Mapping[str, ResultRow], found: Mapping[str, _Answered | None]
) -> dict[str, Difference]:
    """The differences to the first run of all others that kept the answers to the same questions, about two images or
    more."""
    base = found.get(first)
    if base is None or len({group for _, group in base.asked}) < 2:
        return {}
    differences = {}
    for name, other in found.items():
        if name != first and other is not None and other.asked == base.asked:
            before, after = (answered.numbers[rows[name].metric] for answered in (base, other))
            spread = float(np.nanstd(after.replicates - before.replicates, ddof=1))
            differences[name] = Difference(after.value - before.value, spread)
    return differences


def _labels(row: ResultRow) -> tuple[Any, ...]:
    of = " ".join(word for word in (row.family, row.variant) if word not in ("", "all", row.benchmark))
    return row.benchmark, of, row.metric, row.visual_tokens


def _protocol(row: ResultRow) -> tuple[Any, ...]:
    return row.scoring, row.limit or "", row.data_revision[:8]


def _short(runs: Sequence[str]) -> list[str]:
    """The ends of the paths, long enough to tell them apart."""
    parts = [Path(run).parts for run in runs]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return ["/".join(part[-length:]) for part in parts]


def _score(row: ResultRow | None) -> str:
    return "" if row is None else f"{row.value:.3f} ± {2 * row.stderr:.3f}"


def _gain(difference: Difference | None) -> str:
    return "" if difference is None else f"{difference.value:+.3f} ± {2 * difference.stderr:.3f}"
