"""Which of a law's numbers the points determine: the exponents trade with the floor, their ratio does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmkit.scaling.fit import Fit
from vlmkit.scaling.laws import FloatArray
from vlmkit.scaling.variable_projection import solve

_FLOORS = 65
_CHI_SQUARED = 3.841
"""95 % quantile for one degree of freedom."""
_WIDE = 1.2
"""Exponents that agree within this factor are determined well enough to be quoted."""


@dataclass(frozen=True)
class FloorProfile:
    """Ranges (low, high) over all floors that describe the points about as well as the best one."""

    floor: tuple[float, float]
    alpha: tuple[float, float]
    beta: tuple[float, float]
    ratio: tuple[float, float]

    @property
    def note(self) -> str | None:
        """What a reader must know of the exponents, in a sentence; None where they are determined."""
        if max(_factor(self.alpha), _factor(self.beta)) < _WIDE:
            return None
        determined = "their ratio is" if _factor(self.ratio) < _WIDE else "even their ratio only roughly"
        return (
            f"alpha and beta are not determined one by one, {determined}: floors D from {_words(self.floor)} fit about "
            f"as well (likelihood ratio, 95%), with alpha from {_words(self.alpha)}, beta from {_words(self.beta)}, "
            f"alpha/beta from {self.ratio[0]:.2f} to {self.ratio[1]:.2f}."
        )


def profile_floor(fit: Fit) -> FloorProfile | None:
    """Refit with the floor held at values from 0 to the smallest error, and keep those within a likelihood ratio of
    95 %. None for a form without a floor."""
    if fit.law.floor is None:
        return None
    points, form = fit.points, fit.points.form(fit.law.form, has_floor=False)
    floors = np.linspace(0, points.error.min(), _FLOORS)
    solution = solve(form, points.error - floors[:, None], points.weights[None], fit.starts(_FLOORS))
    allowed = solution.squares <= fit.solution.squares * np.exp(_CHI_SQUARED / fit.num_points)
    laws = form.law(solution.theta[allowed], solution.coefficients[allowed])

    def span(values: FloatArray, best: float) -> tuple[float, float]:
        together = np.append(values, best)
        return float(together.min()), float(together.max())

    return FloorProfile(
        span(floors[allowed], float(fit.law.floor)),
        span(np.asarray(laws.alpha), float(fit.law.alpha)),
        span(np.asarray(laws.beta), float(fit.law.beta)),
        span(laws.ratio(*fit.middle), float(fit.law.ratio(*fit.middle))),
    )


def _factor(span: tuple[float, float]) -> float:
    return span[1] / span[0] if span[0] > 0 else np.inf


def _words(span: tuple[float, float]) -> str:
    return f"{span[0]:.3g} to {span[1]:.3g}"
