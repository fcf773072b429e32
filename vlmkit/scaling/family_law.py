"""The law of a family of benchmarks, or of a mix of families, with its bootstrap and what is known of its trust."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from vlmkit.errors import UserError
from vlmkit.scaling.bootstrap import Bootstrap, Interval, residual_bootstrap, size_bootstrap
from vlmkit.scaling.fit import Fit, Loss, fit_law
from vlmkit.scaling.identifiability import profile_floor
from vlmkit.scaling.laws import FloatArray, FormName
from vlmkit.scaling.measurements import Measurement
from vlmkit.scaling.validation import Comparison, LeftOut, compare_forms, leave_one_out

LawName = Literal["product", "additive", "log-linear", "auto"]
DRAWS = 400
"""Draws of the bootstrap behind an answer; it has to come at once."""
LEVEL = 0.95
_COUNTS = 257
"""Token counts among which the best of a mix is sought."""


@dataclass(frozen=True)
class Optimum:
    """The best V under C = 2 N (Q + V) if LLMs came in every size, with its interval where there is one."""

    visual_tokens: float
    interval: Interval | None
    flops: float | None
    """The budget it holds at; None: at any."""


class Predictor(Protocol):
    """What answers are made of: predicted errors, and the same by draws of a bootstrap."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> tuple[Measurement, ...]:
        """What was measured of it."""
        ...

    @property
    def example(self) -> Measurement:
        """One of the measurements behind it, which all have one compressor."""
        ...

    @property
    def counts(self) -> list[int]:
        """Measured token counts, ascending."""
        ...

    @property
    def sizes(self) -> tuple[float, float]: ...

    @property
    def tokens(self) -> tuple[float, float]: ...

    def predict(self, N: FloatArray, V: FloatArray) -> FloatArray:
        """Errors [k] at k pairs."""
        ...

    def draws(self, N: FloatArray, V: FloatArray) -> FloatArray | None:
        """Errors [draws, k]; None where there are too few points for a bootstrap."""
        ...

    def optimum(self, text_tokens: int, counts: tuple[float, float], flops: float | None) -> Optimum | None:
        """None where it depends on a budget and none is given."""
        ...


@dataclass(frozen=True)
class FamilyLaw:
    """A family's measurements, the law fitted to them by least squares, and how far to trust it.

    ``comparison`` is there if the form was chosen by AICc, ``robust`` (the same form by Huber's loss) if it was asked
    for, ``left_out`` and ``bootstrap`` where the points suffice for them.
    """

    name: str
    rows: tuple[Measurement, ...]
    fit: Fit
    bootstrap: Bootstrap | None
    comparison: Comparison | None = None
    robust: Fit | None = None
    weighted: bool = False
    """Whether points weigh by their standard errors."""

    @property
    def example(self) -> Measurement:
        return self.rows[0]

    @property
    def counts(self) -> list[int]:
        return sorted({row.visual_tokens for row in self.rows})

    @property
    def sizes(self) -> tuple[float, float]:
        return self.fit.sizes

    @property
    def tokens(self) -> tuple[float, float]:
        return self.fit.tokens

    def predict(self, N: FloatArray, V: FloatArray) -> FloatArray:
        return self.fit.law.predict(N, V)

    def draws(self, N: FloatArray, V: FloatArray) -> FloatArray | None:
        return None if self.bootstrap is None else self.bootstrap.laws.predict(N, V)

    def optimum(self, text_tokens: int, counts: tuple[float, float], flops: float | None) -> Optimum | None:
        best = self.fit.law.optimal_visual_tokens(text_tokens, counts, flops)
        if best is None:
            return None
        interval = self.bootstrap.optimal_visual_tokens(text_tokens, counts, flops, LEVEL) if self.bootstrap else None
        return Optimum(float(best), interval, flops if self.fit.law.form == "additive" else None)

    @cached_property
    def left_out(self) -> Mapping[str, LeftOut]:
        """Errors at sizes, and at token counts, that the law was not fitted to; where enough are left to fit."""
        axes: tuple[Literal["size", "tokens"], ...] = ("size", "tokens")
        found = {axis: leave_one_out(self.fit, axis) for axis in axes}
        return {axis: errors for axis, errors in found.items() if errors}

    @cached_property
    def ratio_by_size(self) -> Interval | None:
        """The interval of alpha/beta if whole LLMs are redrawn; None for fewer than four sizes."""
        try:
            return size_bootstrap(self.fit, DRAWS).ratio(LEVEL)
        except UserError:
            return None

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """What a reader must know of the law before using its numbers, a sentence each."""
        notes = []
        law = self.fit.law
        if not self.fit.describes:
            notes.append(
                f"The {law.form} form does not describe these measurements, as far off as "
                f"{self.fit.max_relative_error:.0%} of one: go by the measured points, not by its choices."
            )
        for name, thing in (("alpha", "larger LLMs"), ("beta", "more visual tokens")):
            if name in self.fit.at_bound:
                notes.append(
                    f"{name} is at the end of its range ({getattr(law, name):.3g}): in these measurements the error "
                    f"does not fall with {thing} as a power law would."
                )
        profile = profile_floor(self.fit)
        floor = "The floor D is on its bound 0. " if "D" in self.fit.at_bound else ""
        if text := floor + ((profile and profile.note) or ""):
            notes.append(text[0].upper() + text[1:].strip())
        if self.bootstrap is None:
            notes.append("There are too few points for intervals.")
        if self.comparison:
            others = ", ".join(f"{form} {aicc:.1f}" for form, aicc in self.comparison.aicc.items())
            notes.append(f"The {law.form} form was chosen by AICc, the lower the better: {others}.")
        return tuple(notes)


@dataclass(frozen=True)
class Mix:
    """A weighted mean of the errors of families; weights add up to 1. The families' draws are independent."""

    name: str
    parts: tuple[tuple[FamilyLaw, float], ...] = field(repr=False)

    @property
    def rows(self) -> tuple[Measurement, ...]:
        """The mix's measured errors, where all of its families were measured."""
        errors = [{(row.llm, row.visual_tokens): row.error for row in law.rows} for law, _ in self.parts]
        weights = [weight for _, weight in self.parts]
        cells = {(row.llm, row.visual_tokens): row for row in self.parts[0][0].rows}
        return tuple(
            replace(row, family=self.name, error=float(np.dot(weights, [found[cell] for found in errors])), stderr=None)
            for cell, row in cells.items()
            if all(cell in found for found in errors)
        )

    @property
    def example(self) -> Measurement:
        return self.parts[0][0].example

    @property
    def counts(self) -> list[int]:
        return sorted({count for law, _ in self.parts for count in law.counts})

    @property
    def sizes(self) -> tuple[float, float]:
        return max(law.sizes[0] for law, _ in self.parts), min(law.sizes[1] for law, _ in self.parts)

    @property
    def tokens(self) -> tuple[float, float]:
        return max(law.tokens[0] for law, _ in self.parts), min(law.tokens[1] for law, _ in self.parts)

    def predict(self, N: FloatArray, V: FloatArray) -> FloatArray:
        return np.sum([weight * law.predict(N, V) for law, weight in self.parts], axis=0)

    def draws(self, N: FloatArray, V: FloatArray) -> FloatArray | None:
        total = np.zeros(1)
        for law, weight in self.parts:
            drawn = law.draws(N, V)
            if drawn is None:
                return None
            total = total + weight * drawn
        return total

    def optimum(self, text_tokens: int, counts: tuple[float, float], flops: float | None) -> Optimum | None:
        if flops is None:
            return None
        V = np.geomspace(*counts, _COUNTS)
        N = flops / (2e9 * (text_tokens + V))
        drawn = self.draws(N, V)
        interval = None
        if drawn is not None:
            low, high = np.quantile(V[drawn.argmin(1)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
            interval = float(low), float(high)
        return Optimum(float(V[self.predict(N, V).argmin()]), interval, flops)


def fit_family(name: str, rows: Sequence[Measurement], law: LawName = "product", loss: Loss = "squared") -> FamilyLaw:
    """Fit a family by least squares, with weights where all rows have standard errors.

    ``law`` auto takes the form with the lowest AICc; ``loss`` huber fits a second time, as a check. Raises UserError
    where the rows cannot identify the law.
    """
    N, V = [row.llm.billions for row in rows], [row.visual_tokens for row in rows]
    error = [row.error for row in rows]
    stated = [row.stderr for row in rows if row.stderr is not None]
    deviations = stated if len(stated) == len(rows) else None
    comparison = compare_forms(N, V, error, standard_errors=deviations) if law == "auto" else None
    form: FormName = comparison.best.law.form if comparison else law  # type: ignore[assignment]
    fit = comparison.best if comparison else fit_law(form, N, V, error, standard_errors=deviations)
    robust = fit_law(form, N, V, error, standard_errors=deviations, loss="huber") if loss == "huber" else None
    return FamilyLaw(name, tuple(rows), fit, _bootstrap(name, fit), comparison, robust, deviations is not None)


def _bootstrap(name: str, fit: Fit) -> Bootstrap | None:
    try:
        # Families are drawn independently of each other, and of their order.
        return residual_bootstrap(fit, DRAWS, seed=zlib.crc32(name.encode()))
    except UserError:
        # As many points as numbers: the law is exact and nothing says how far it would move.
        return None
