"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vlmkit.config import Section


class Device(str, Enum):
    """Where a command computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Format(str, Enum):
    """How results are printed."""

    table = "table"
    markdown = "markdown"
    csv = "csv"
    json = "json"


class Scoring(str, Enum):
    """Whose rule scores answers."""

    official = "official"
    lmms_eval = "lmms-eval"


RecipeOption = Annotated[Path | None, typer.Option("--recipe", "-r", help="YAML recipe; flags and --set override it.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key: --set train.optim.lr=1e-3. Repeatable.")
]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory. An existing run is resumed.")]
ResumeOption = Annotated[Path | None, typer.Option("--resume", help="Go on with this run, by its own recipe.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; nothing is written.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print; csv and json hold all numbers.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of weights, order and augmentation.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Training data, KIND:WHERE like miniworld:train; kinds: vlmkit models.")
]
ValOption = Annotated[str | None, typer.Option("--val", help="Held-out data, written like --data; `none` for none.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where to compute.")]
BadFractionOption = Annotated[
    float | None, typer.Option("--max-bad-fraction", help="Refuse to go on beyond this share of unreadable samples.")
]


def parse_counts(text: str) -> list[int]:
    """Token counts as written on the command line: ``4``, or several with commas between them. Raises UserError."""
    from vlmkit.errors import UserError

    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(counts):
        raise UserError(f"--tokens {text} is no list of token counts; write whole numbers, like 4 or 1,4,16.")
    return [*dict.fromkeys(counts)]


def resolve(
    command: str,
    recipe: Path | None,
    resume: Path | None,
    flags: Mapping[str, Any],
    sets: list[str] | None,
) -> Section:
    """The recipe of a command: its file (or that of the run to resume), then the flags given, then ``--set``."""
    from vlmkit.errors import UserError
    from vlmkit.recipe import load_recipe, parse_override
    from vlmkit.runs import is_run

    if resume and recipe:
        raise UserError("--resume takes the run's own recipe; leave --recipe out.")
    if resume and not is_run(resume):
        raise UserError(f"{resume} is not a run directory: it has no recipe.yaml; give the --out of an earlier run.")
    overrides = {key: value for key, value in flags.items() if value is not None}
    if overrides.get("data.val") == "none":
        overrides["data.val"] = None
    for text in sets or []:
        key, value = parse_override(text)
        overrides[key] = value
    return load_recipe(command, resume / "recipe.yaml" if resume else recipe, overrides)
