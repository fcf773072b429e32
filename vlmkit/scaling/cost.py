"""What one answer costs in FLOPs, and how a budget is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TypeVar

from vlmkit.errors import UserError
from vlmkit.scaling.laws import FloatArray

FloatOrArray = TypeVar("FloatOrArray", float, FloatArray)

_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BUDGET = re.compile(r"(?P<number>[+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(?P<prefix>[KMGTPE]?)(?:FLOPS?)?", re.IGNORECASE)


def prefill_flops(N: float, V: FloatOrArray, text_tokens: int) -> FloatOrArray:
    """FLOPs of one prefill of the LLM, C = 2 N (Q + V) (arXiv 2411.03312).

    ``N`` is in billions of parameters, ``V`` visual tokens, ``text_tokens`` is Q. The vision tower, the compressor and
    the generated tokens are not in it.
    """
    return 2e9 * N * (text_tokens + V)


def parse_budget(text: str) -> float:
    """FLOPs from ``5e12``, ``5TFLOPs``, ``5 TFLOP`` or ``800GFLOPs`` (prefixes K M G T P E, any case).

    Raises UserError for another unit, and for a budget that is zero, negative or not finite.
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise UserError(f"The budget {text!r} is not a number of FLOPs; write it like 5e12 or 5TFLOPs.")
    flops = float(match["number"]) * _PREFIXES[match["prefix"].upper()]
    if not (math.isfinite(flops) and flops > 0):
        raise UserError(f"The budget {text!r} must be a positive number of FLOPs, such as 5e12 or 5TFLOPs.")
    return flops


def format_flops(flops: float) -> str:
    """FLOPs with three significant digits and a prefix: ``3.19 TFLOPs``."""
    number, prefix = _scaled(flops, _PREFIXES)
    return f"{number} {prefix}FLOPs"


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
