"""How amounts are written: budgets as people give them, and costs as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from vlmkit.errors import UserError


class Unit(str, Enum):
    """What a budget is counted in."""

    flops = "FLOPs"
    milliseconds = "ms"
    bytes = "bytes"


@dataclass(frozen=True)
class Budget:
    """At most so much of a unit: FLOPs, milliseconds or bytes."""

    amount: float
    unit: Unit

    def __str__(self) -> str:
        return format_amount(self.amount, self.unit)


_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZES = {f"{prefix}B": size for prefix, size in _PREFIXES.items()} | {
    f"{prefix}IB": 1024.0**power for power, prefix in enumerate("KMGTPE", 1)
}
_AMOUNT = re.compile(r"(?P<number>[+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(?P<unit>[a-z]*)", re.IGNORECASE)
_EXAMPLES = {
    Unit.flops: "FLOPs like 5e12 or 5TFLOPs",
    Unit.milliseconds: "time like 50ms or 0.2s",
    Unit.bytes: "memory like 24GB or 16GiB",
}


def parse_budget(text: str, units: Sequence[Unit] = tuple(Unit)) -> Budget:
    """FLOPs (``5e12``, ``5TFLOPs``, ``800 GFLOP``), time (``50ms``, ``0.2s``) or memory (``24GB``, ``16GiB``).

    Prefixes are K M G T P E, in any case. Raises UserError for an unknown unit, for one that is not among ``units``,
    and for an amount that is zero, negative or not finite.
    """
    examples = " or ".join(_EXAMPLES[unit] for unit in units)
    match = _AMOUNT.fullmatch(text.strip())
    found = None if match is None else _unit(match["unit"])
    if match is None or found is None:
        raise UserError(f"The budget {text!r} is no number with a known unit; write {examples}.")
    unit, size = found
    if unit not in units:
        raise UserError(f"The budget {text!r} is in {unit.value}, which limits nothing here; write {examples}.")
    amount = float(match["number"]) * size
    if not (math.isfinite(amount) and amount > 0):
        raise UserError(f"The budget {text!r} must be positive and finite; write {examples}.")
    return Budget(amount, unit)


def parse_budgets(texts: Iterable[str]) -> dict[Unit, Budget]:
    """Several budgets that hold at once, one for each unit. Raises UserError as :func:`parse_budget` does, and for two
    budgets of one unit."""
    budgets: dict[Unit, Budget] = {}
    for text in texts:
        budget = parse_budget(text)
        if (other := budgets.setdefault(budget.unit, budget)) is not budget:
            raise UserError(f"Two budgets are in {budget.unit.value}, {other} and {budget}; give the smaller one.")
    return budgets


def _unit(written: str) -> tuple[Unit, float] | None:
    """A unit and how much of it one of ``written`` is; without a unit, or with a prefix alone, FLOPs."""
    if written.lower() in _TIMES:
        return Unit.milliseconds, _TIMES[written.lower()]
    upper = written.upper()
    if upper in _SIZES:
        return Unit.bytes, _SIZES[upper]
    prefix = upper.removesuffix("S").removesuffix("FLOP")
    known = upper in (prefix, f"{prefix}FLOP", f"{prefix}FLOPS") and prefix in _PREFIXES
    return (Unit.flops, _PREFIXES[prefix]) if known else None


def format_amount(amount: float, unit: Unit) -> str:
    """An amount with its unit, three significant digits: ``3.19 TFLOPs``, ``14.2 GB``, ``52.1 ms``."""
    if unit is Unit.milliseconds:
        return f"{amount:.3g} ms" if amount < 1000 else f"{amount / 1000:.3g} s"
    number, prefix = _scaled(amount, _PREFIXES)
    return f"{number} {prefix}{'FLOPs' if unit is Unit.flops else 'B'}"


def format_flops(flops: float) -> str:
    """FLOPs with three significant digits and a prefix: ``3.19 TFLOPs``."""
    return format_amount(flops, Unit.flops)


def format_params(count: float) -> str:
    """A number of parameters as model names write it: ``1.8B``, ``35.2K``."""
    return "".join(_scaled(count, {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}))


def _scaled(value: float, prefixes: Mapping[str, float]) -> tuple[str, str]:
    """``value`` in the largest unit it fills, with three significant digits, and that unit's prefix."""
    rounded = float(f"{value:.3g}")
    prefix, size = max(
        ((prefix, size) for prefix, size in prefixes.items() if size <= max(rounded, 1.0)), key=lambda unit: unit[1]
    )
    scaled = rounded / size
    return (f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.3g}"), prefix
