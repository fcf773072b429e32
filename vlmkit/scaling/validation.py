"""Whether a law can be trusted: errors at sizes and token counts left out, and which form describes the points best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vlmkit.scaling.fit import Fit, fit_law, unidentified
from vlmkit.scaling.laws import FormName
from vlmkit.scaling.separable import FORMS
from vlmkit.scaling.variable_projection import solve

_EXACT = 1e-9
"""Root mean square residual, relative to the errors, below which a fit is exact and its size is rounding."""


@dataclass(frozen=True)
class LeftOut:
    """For every left-out size (billions) or token count the largest |predicted - measured| / measured at its points,
    predicted by the law fitted to the others."""

    axis: Literal["size", "tokens"]
    max_relative_errors: Mapping[float, float]

    @property
    def largest(self) -> float:
        return max(self.max_relative_errors.values())


def leave_one_out(fit: Fit, axis: Literal["size", "tokens"]) -> LeftOut | None:
    """Refit the law's form by least squares without each size, or token count, in turn.

    The smallest and the largest are extrapolations. Those without which the rest cannot identify the law are not left
    out; None where that is all of them, as with three sizes.
    """
    points, form = fit.points, fit.points.form(fit.law.form)
    values = points.N if axis == "size" else points.V
    levels = [level for level in np.unique(values) if unidentified(points.only(values != level)) is None]
    if not levels:
        return None
    kept = values != np.array(levels)[:, None]
    solution = solve(form, points.error[None], kept * points.weights, fit.starts(len(kept)))
    measured = ~kept & (points.error > 0)
    relative = np.abs(solution.residuals) / np.where(points.error > 0, points.error, 1.0)
    largest = np.max(relative, axis=1, where=measured, initial=0.0)
    return LeftOut(axis, dict(zip(map(float, levels), map(float, largest), strict=True)))


@dataclass(frozen=True)
class Comparison:
    """Least-squares fits of all forms to the same points and their AICc: the lower, the better; differences of less
    than about 2 decide nothing."""

    fits: Mapping[FormName, Fit]
    aicc: Mapping[FormName, float]

    @property
    def best(self) -> Fit:
        return self.fits[min(self.aicc, key=lambda form: self.aicc[form])]


def compare_forms(
    N: npt.ArrayLike, V: npt.ArrayLike, error: npt.ArrayLike, *, standard_errors: npt.ArrayLike | None = None
) -> Comparison:
    """Fit every form (arguments and errors as ``fit_law``) and compare them by AICc."""
    fits = {form: fit_law(form, N, V, error, standard_errors=standard_errors) for form in FORMS}
    return Comparison(fits, {form: corrected_aic(fit) for form, fit in fits.items()})


def corrected_aic(fit: Fit) -> float:
    """AICc of normal errors of unknown variance: n ln(squares / n) + 2k + 2k(k + 1) / (n - k - 1).

    k counts the law's numbers and the variance; infinite where the points are too few for them (n <= k + 1).
    """
    n, k = fit.num_points, len(fit.law.parameters) + 1
    if n <= k + 1:
        return math.inf
    # Between exact fits only the number of parameters decides.
    variance = max(fit.sum_of_squares / n, float(np.square(_EXACT * fit.points.error).mean()))
    return n * math.log(variance) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
