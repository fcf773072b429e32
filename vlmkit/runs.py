"""The run directory: layout, provenance, result rows, and "this path is a model". No torch.

RUN/
  recipe.yaml        the resolved recipe
  provenance.json    versions, seed, data fingerprints, hardware
  metrics.jsonl      one line per logged step
  checkpoints/       step-00001234/ ...: training state, resumable
  model/             the finished model in the ecosystem's own layout; appears whole or not at all
  results.jsonl      one row per benchmark and family
  samples/           what a VLM answered: one JSON line a question, and beside it what the answers are about
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from vlmkit.config import RECIPES, Section
from vlmkit.errors import UserError
from vlmkit.recipe import load_yaml, parse_recipe, resume_conflicts

_PACKAGES = ("vlmkit", "torch", "torchvision", "transformers", "open_clip_torch", "numpy", "pillow", "scikit-learn")

_MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class ResultRow:
    """One number of one evaluation, with everything ``frontier`` needs to know about the model behind it.

    ``value`` is in 0..1 (a tenth of CIDEr-D), higher is better; ``stderr`` is its standard error over ``num_samples``
    samples, and ``ci_low`` to ``ci_high`` its 95 % interval where one was computed; ``num_errors`` samples count as
    wrong because they could not be shown. A row without ``family`` is another metric of a benchmark; no law is fitted
    to it. A row with ``benchmarks``, names with commas between them, is the mean over that set. Rows of a tower leave
    the VLM's fields at None. ``data_revision`` and ``scoring`` say on what and how it was scored; ``variant`` tells
    rows of one benchmark apart (an attribute of a probe, the random tower beside it).
    ``query`` is what a compressor that can read the question was told of it (llm, embed_mean, none; see
    ``compressor.query``), None for the others.
    """

    benchmark: str
    family: str
    metric: str
    value: float
    num_samples: int
    stderr: float
    data_revision: str
    scoring: str
    ci_low: float | None = None
    ci_high: float | None = None
    num_errors: int = 0
    limit: int | None = None
    variant: str = ""
    benchmarks: str = ""
    llm: str | None = None
    llm_params: int | None = None
    llm_params_non_embedding: int | None = None
    total_params: int | None = None
    visual_tokens: int | None = None
    compressor: str | None = None
    query: str | None = None
    seed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in results.jsonl."""
        return asdict(self)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rows the same measurement: a newer one replaces an older one."""
        return (
            self.benchmark,
            self.family,
            self.metric,
            self.data_revision,
            self.scoring,
            self.limit,
            self.variant,
            self.visual_tokens,
        )


class RunDirectory:
    """A run on disk. Creating the object touches nothing; ``prepare`` writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def provenance_path(self) -> Path:
        return self.path / "provenance.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results_path(self) -> Path:
        return self.path / "results.jsonl"

    @property
    def samples_dir(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def align_dir(self) -> Path:
        return self.path / "align"

    @property
    def finished(self) -> bool:
        """Whether training ended and the model was exported."""
        return self.model_dir.is_dir()

    def recipe(self) -> Section:
        """The resolved recipe this run was started with."""
        if not self.recipe_path.is_file():
            raise UserError(f"{self.path} is not a run directory: it has no recipe.yaml; give the --out of a run.")
        raw = load_yaml(self.recipe_path)
        command = raw.get("command")
        if command not in RECIPES:
            raise UserError(f"{self.recipe_path} names no vlmkit command ({command!r}); give a run's directory.")
        return parse_recipe(command, raw, origin=str(self.recipe_path))

    def check(self, recipe: Section, data: Mapping[str, str]) -> None:
        """Raise UserError, touching nothing, unless ``recipe`` may start here or resume the run that is here.

        ``data`` maps the names of the sources to their fingerprints. The keys that differ are named.
        """
        if self.recipe_path.is_file():
            conflicts = resume_conflicts(self.recipe(), recipe)
            if conflicts:
                raise UserError(
                    f"{self.path} holds a run with another recipe ({'; '.join(conflicts)}); "
                    "give another --out, or the same settings to resume it."
                )
            self._check_data(data)
        elif self.path.is_dir() and any(path != self.align_dir for path in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and is not a run directory; give another --out.")

    def prepare(self, recipe: Section, data: Mapping[str, str], hardware: Mapping[str, str | int]) -> None:
        """Make the directory for ``recipe``, or go on with the run in it, if ``check`` allows.

        ``hardware`` describes where the run computes, for the provenance.
        """
        self.check(recipe, data)
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.recipe_path, recipe.to_yaml())
        if not self.provenance_path.exists():
            write_atomically(self.provenance_path, json.dumps(provenance(data, hardware), indent=2) + "\n")

    def _check_data(self, data: Mapping[str, str]) -> None:
        if not self.provenance_path.is_file():
            return
        before = json.loads(self.provenance_path.read_text())["data"]
        changed = [name for name, fingerprint in data.items() if before.get(name, fingerprint) != fingerprint]
        if changed:
            raise UserError(
                f"The {' and '.join(changed)} data of {self.path} changed since the run started; "
                "resuming would mix two data sets: restore the data or give another --out."
            )

    @contextmanager
    def writing_model(self) -> Iterator[Path]:
        """A scratch directory that becomes ``model/`` in one rename when the block ends without an exception."""
        scratch = self.path / f".model-{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
            if self.model_dir.exists():
                shutil.rmtree(self.model_dir)
            scratch.rename(self.model_dir)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def results(self) -> list[ResultRow]:
        """All result rows, newest measurement of each key only."""
        if not self.results_path.is_file():
            return []
        rows: dict[tuple[Any, ...], ResultRow] = {}
        for number, line in enumerate(self.results_path.read_text().splitlines(), 1):
            try:
                row = ResultRow(**json.loads(line))
            except (json.JSONDecodeError, TypeError) as error:
                raise UserError(
                    f"{self.results_path}, line {number} is not a result row ({error}); "
                    "remove the line or run `vlmkit eval` again."
                ) from error
            rows[row.key] = row
        return list(rows.values())

    def append_results(self, rows: Iterable[ResultRow]) -> None:
        """Add rows; a row with the key of an earlier one replaces it."""
        merged = {row.key: row for row in [*self.results(), *rows]}
        write_atomically(self.results_path, "".join(json.dumps(row.as_dict()) + "\n" for row in merged.values()))


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is a run directory (finished or not)."""
    return (Path(path) / "recipe.yaml").is_file()


def open_model(path: str | Path, command: str) -> Path:
    """The ``model/`` directory of a finished run of ``command``, for use wherever a model may be named.

    Raises UserError if the path is no run, is a run of another kind, or has not finished.
    """
    run = RunDirectory(path)
    kind = getattr(run.recipe(), "command", None)
    if kind != command:
        raise UserError(f"{path} is a {kind} run, but a {command} run is needed here.")
    if not run.finished:
        raise UserError(f"The run {path} has not finished; resume it with `vlmkit {command} --resume {path}`.")
    return run.model_dir


def files_stamp(directory: Path) -> str:
    """A digest of a model's files by name, size and time, not content: it changes whenever one is written anew."""
    digest = sha256()
    for path in sorted(path for path in directory.iterdir() if path.suffix in _MODEL_FILES):
        about = path.stat()
        digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def provenance(data: Mapping[str, str], hardware: Mapping[str, str | int]) -> dict[str, Any]:
    """Versions, hardware and data fingerprints of this process, for provenance.json."""
    return {
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count(), **hardware},
        "command_line": sys.argv[1:],
        "data": dict(data),
    }


def versions() -> dict[str, str | None]:
    """The version of Python and of each package that results depend on; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def result_columns() -> list[str]:
    """Names of the fields of a result row, in order."""
    return [field.name for field in fields(ResultRow)]
