"""Measured errors of vision-language models: the published tables, run directories, CSV and JSONL files."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.scaling.set_means import missing_means

PUBLISHED = Path(__file__).parent / "published"
PUBLISHED_FAMILIES = ("reasoning", "ocr")
Basis = Literal["nominal", "non-embedding"]

Query = Literal["llm", "embed_mean", "none"]

Record = Mapping[str, Any]
"""One row of a table, or one result row of a run, by column name."""


@dataclass(frozen=True)
class SizedLLM:
    """A language model with the size that law and cost use (``billions``) and its count of all weights."""

    name: str
    billions: float
    num_params: int


@dataclass(frozen=True)
class Measurement:
    """The mean error (1 - score) of one family of benchmarks for one LLM and number of visual tokens."""

    family: str
    llm: SizedLLM
    visual_tokens: int
    error: float
    stderr: float | None = None
    """Standard error of ``error``, where it is known."""
    compressor: str | None = None
    query: Query | None = None
    """What the compressor was told of the question, where it can be told."""

    @property
    def compressor_label(self) -> str | None:
        """The compressor, with what it is told of the question: blind, it is another."""
        return f"{self.compressor}, query {self.query}" if self.query else self.compressor


@dataclass(frozen=True)
class Measurements:
    """Measurements whose sizes are counted in one way, with what a reader has to know about them.

    ``basis`` says what ``billions`` means: the size in the model's name, or the non-embedding weights. ``notes`` maps a
    family to remarks on single cells (suspicious, or left out), ``missing`` one without rows to what they would need.
    """

    rows: tuple[Measurement, ...]
    basis: Basis
    notes: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def families(self) -> list[str]:
        """Families in the order of their first measurement."""
        return list(dict.fromkeys(row.family for row in self.rows))

    @property
    def llms(self) -> list[SizedLLM]:
        """The measured language models, smallest first."""
        return sorted({row.llm.name: row.llm for row in self.rows}.values(), key=lambda llm: llm.billions)

    def of(self, family: str) -> list[Measurement]:
        return [row for row in self.rows if row.family == family]

    def find_llm(self, name: str) -> SizedLLM:
        """A measured LLM by name, else one of the registry (UserError if unknown), sized on this table's basis."""
        canonical = registry.llm(name).name if registry.is_llm(name) else name
        for llm in self.llms:
            if llm.name == canonical:
                return llm
        facts = registry.llm(name)
        billions = facts.nominal_billions if self.basis == "nominal" else facts.num_params_non_embedding / 1e9
        return SizedLLM(facts.name, billions, facts.num_params)


def load_published() -> Measurements:
    """The tables published with arXiv 2411.03312 (values.py of its code): reasoning and OCR-like benchmarks."""
    return load_measurements([PUBLISHED / f"{family}.csv" for family in PUBLISHED_FAMILIES])


def load_measurements(paths: Iterable[str | Path], columns: Mapping[str, str] | None = None) -> Measurements:
    """Read measurements from run directories, directories that hold runs, and CSV or JSONL files.

    Tables have the columns ``llm, visual_tokens, score`` and may have ``family``, ``llm_params_billions`` (default: the
    size in the registry), ``stderr``, ``seed``, ``compressor``, ``flag`` (``excluded``: left out; ``suspect``: used;
    both said) and ``note``; ``columns`` maps these names to those in the files where they differ. Files with the
    columns of results.jsonl (``value``, ``llm_params_non_embedding``, ...) are read like run directories. Scores are
    fractions, higher is better. Rows that differ in their seed are points of their own; benchmarks are never averaged:
    the mean over a named set of them is a row of its own. A family measured with several compressors becomes a family
    for each, ``reasoning (quecc)``. Raises UserError for what cannot be read or compared, and for a row given twice.
    """
    cells: dict[tuple[Any, ...], list[tuple[Record, Measurement]]] = defaultdict(list)
    notes: dict[str, tuple[str, ...]] = {}
    bases: set[Basis] = set()
    records = [(origin, _renamed(record, columns or {}, origin)) for origin, record in _records(paths)]
    families = _family_names(record for _, record in records)
    parsed = [(origin, record, *_parse(record, origin, families)) for origin, record in records]
    series = _series_names(row for *_, row, _ in parsed)
    for origin, record, measured, basis in parsed:
        row = replace(measured, family=series[measured.family, measured.compressor_label])
        bases.add(basis)
        flag = record.get("flag")
        if flag:
            notes[row.family] = (*notes.get(row.family, ()), _remark(row, flag, record.get("note"), origin))
        if flag != "excluded":
            cells[origin, row.family, row.llm.name, row.visual_tokens, record.get("seed")].append((record, row))
    if not cells:
        raise UserError(
            f"No measurements of a VLM in {', '.join(map(str, paths))}: evaluate the runs first (`vlmkit eval RUN`)."
        )
    if len(bases) > 1:
        raise UserError(
            "The measurements mix LLM sizes by name with non-embedding parameter counts, which one law cannot use: "
            "give the tables and the runs separately."
        )
    missing = missing_means(
        (origin, record, row.visual_tokens) for (origin, *_), cell in cells.items() for record, row in cell
    )
    _check_comparable(cells)
    rows = []
    for cell in cells.values():
        first = cell[0][1]
        error = math.fsum(row.error for _, row in cell) / len(cell)
        stated = [row.stderr for _, row in cell if row.stderr is not None]
        stderr = math.hypot(*stated) / len(cell) if len(stated) == len(cell) else None
        rows.append(replace(first, error=error, stderr=stderr))
    return Measurements(tuple(rows), bases.pop(), notes, missing)


def _records(paths: Iterable[str | Path]) -> Iterator[tuple[Path, Record]]:
    for path in map(Path, paths):
        if path.is_dir() or path.name == "results.jsonl":
            found = sorted(path.rglob("results.jsonl")) if path.is_dir() else [path]
            if not found:
                raise UserError(f"{path} holds no results.jsonl: evaluate the run first (`vlmkit eval {path}`).")
            for file in found:
                yield from ((file.parent, record) for record in _run_records(file.parent))
        elif path.suffix == ".csv":
            yield from ((path, record) for record in csv.DictReader(_read(path).splitlines()))
        elif path.suffix == ".jsonl":
            yield from ((path, record) for record in _json_lines(path))
        else:
            raise UserError(f"{path} is no run directory and no .csv or .jsonl file: give one of these.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give run directories, or CSV or JSONL files.") from error


def _run_records(path: Path) -> list[Record]:
    """The rows of a run's VLM with a family; of several evaluations of one benchmark, those on the most samples, and
    officially scored if they are scored in several ways."""
    from vlmkit.runs import ResultRow, RunDirectory  # pydantic and yaml are slow to import and not needed for tables

    def rank(row: ResultRow) -> tuple[int, bool]:
        return row.num_samples, row.scoring == "official"

    best: dict[tuple[Any, ...], ResultRow] = {}
    for row in RunDirectory(path).results():
        key = (row.benchmark, row.family, row.metric, row.variant, row.visual_tokens)
        if row.llm and row.family and (key not in best or rank(row) > rank(best[key])):
            best[key] = row
    return [asdict(row) for row in best.values()]


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error.msg}); correct or remove it.") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} is not a JSON object; write one object a line.")
        yield record


def _renamed(record: Record, columns: Mapping[str, str], origin: Path) -> Record:
    """The record by our names of its columns, which ``columns`` maps to its own. Raises UserError if it lacks one."""
    if absent := [theirs for theirs in columns.values() if theirs not in record]:
        raise UserError(f"{origin} has no column {', '.join(absent)}; it has {', '.join(map(str, record))}.")
    return {**record, **{ours: record[theirs] for ours, theirs in columns.items()}}


def _series_names(rows: Iterable[Measurement]) -> dict[tuple[str, str | None], str]:
    """What a family is called, by its name and compressor: of several compressors, each has a law of its own."""
    compressors: dict[str, dict[str | None, None]] = defaultdict(dict)
    for row in rows:
        compressors[row.family][row.compressor_label] = None
    return {
        (family, label): family if len(labels) == 1 else f"{family} ({label or 'no compressor named'})"
        for family, labels in compressors.items()
        for label in labels
    }


def _family(record: Record) -> str:
    return str(record.get("family") or record.get("benchmark") or "all")


def _family_names(records: Iterable[Record]) -> dict[tuple[str, Any], str]:
    """What a family is called, by its name and its benchmark's: where several benchmarks have a family of one name, it
    is that of the mean over a named set alone, and the others bear their benchmarks' names as well."""
    owners: dict[str, dict[Any, bool]] = defaultdict(dict)
    for record in records:
        owners[_family(record)][record.get("benchmark")] = bool(record.get("benchmarks"))
    return {
        (family, benchmark): family if len(benchmarks) == 1 or is_mean else f"{family} ({benchmark})"
        for family, benchmarks in owners.items()
        for benchmark, is_mean in benchmarks.items()
    }


def _parse(record: Record, origin: Path, families: Mapping[tuple[str, Any], str]) -> tuple[Measurement, Basis]:
    name = str(_column(record, "llm", origin))
    score = _number(record, "value" if "value" in record else "score", origin)
    if not 0 <= score <= 1:
        cause = "it looks like a percentage: divide all by 100" if 1 < score <= 100 else "correct it"
        raise UserError(f"A score of {name} in {origin} is {score:g}, but scores are fractions in 0..1; {cause}.")
    tokens = _number(record, "visual_tokens", origin)
    if tokens < 1 or tokens != int(tokens):
        raise UserError(f"The visual_tokens of {name} in {origin} are {tokens:g}; give a whole number of at least 1.")
    facts = registry.llm(name) if registry.is_llm(name) else None
    basis: Basis = "nominal"
    if record.get("llm_params_non_embedding"):
        basis, billions = "non-embedding", _number(record, "llm_params_non_embedding", origin) / 1e9
    elif facts and not record.get("llm_params_billions"):
        billions = facts.nominal_billions
    else:
        billions = _number(record, "llm_params_billions", origin)
    if billions <= 0:
        raise UserError(f"The size of {name} in {origin} is {billions:g} billion parameters; it must be positive.")
    if record.get("llm_params"):
        num_params = int(_number(record, "llm_params", origin))
    else:
        num_params = facts.num_params if facts else round(billions * 1e9)
    family = families[_family(record), record.get("benchmark")]
    llm = SizedLLM(facts.name if facts else name, billions, num_params)
    stderr = _number(record, "stderr", origin) if record.get("stderr") not in (None, "") else None
    if stderr is not None and stderr < 0:
        raise UserError(f"The stderr of {name} in {origin} is {stderr:g}; it cannot be negative.")
    query = record.get("query") or None
    if query not in (None, *get_args(Query)):
        raise UserError(f"The query of {name} in {origin} is {query!r}; it is one of {', '.join(get_args(Query))}.")
    return Measurement(family, llm, int(tokens), 1 - score, stderr, record.get("compressor") or None, query), basis


def _column(record: Record, name: str, origin: Path) -> Any:
    value = record.get(name)
    if value is None or value == "":
        hint = (
            "" if name in record else f" (it has {', '.join(map(str, record))}; --columns {name}=COLUMN names another)"
        )
        raise UserError(f"A row of {origin} has no {name}: every row needs llm, visual_tokens and score{hint}.")
    return value


def _number(record: Record, name: str, origin: Path) -> float:
    value = _column(record, name, origin)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"The {name} in a row of {origin} is {value!r}, not a number.")
    return number


def _remark(row: Measurement, flag: str, note: str | None, origin: Path) -> str:
    verbs = {"excluded": "is left out of the fit", "suspect": "is used as printed but suspicious"}
    if flag not in verbs:
        raise UserError(f"The flag {flag!r} in {origin} is unknown: use {' or '.join(verbs)}, or leave it empty.")
    cell = f"The score of {row.llm.name} with {row.visual_tokens} tokens ({1 - row.error:.4f}) {verbs[flag]}"
    return f"{cell}: {note}." if note else f"{cell}."


_PROTOCOL = {
    "benchmark": "benchmarks",
    "benchmarks": "sets of benchmarks",
    "metric": "metrics",
    "variant": "variants",
    "data_revision": "data",
    "scoring": "scoring",
    "limit": "--limit",
}
"""What rows of one law must share, in the words of a sentence."""


def _check_comparable(cells: Mapping[tuple[Any, ...], Sequence[tuple[Record, Measurement]]]) -> None:
    """Refuse to compare runs that were scored differently, and rows that say the same thing twice."""
    protocols: dict[str, tuple[Path, dict[str, set[str]]]] = {}
    for (origin, family, *_), cell in cells.items():
        protocol = {column: {str(record.get(column)) for record, _ in cell} for column in _PROTOCOL}
        first, expected = protocols.setdefault(family, (origin, protocol))
        if differing := [words for column, words in _PROTOCOL.items() if protocol[column] != expected[column]]:
            raise UserError(
                f"The {family} scores of {origin} and {first} come from different {', '.join(differing)}: "
                "evaluate all runs in the same way."
            )
        said = [tuple(record.get(column) for column in _PROTOCOL) for record, _ in cell]
        if len(said) > len(set(said)):
            row = cell[0][1]
            raise UserError(
                f"{origin} has the {family} score of {row.llm.name} with {row.visual_tokens} visual tokens more than "
                "once: keep one row (or one of the paths), or tell repeats apart by a column seed."
            )
