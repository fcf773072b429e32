"""How far a fitted law would move with other measurements: laws refitted to redrawn ones, and their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vlmkit.errors import UserError
from vlmkit.scaling.fit import Fit, unidentified
from vlmkit.scaling.laws import FloatArray, ScalingLaw
from vlmkit.scaling.separable import map_parameters
from vlmkit.scaling.variable_projection import free_gradients, solve

Interval = tuple[float, float]

DRAWS = 1000
_MIN_SIZES = 4
"""Sizes below which a redrawing of them that still identifies a law is the measurements themselves."""
_FULL_LEVERAGE = 1 - 1e-8
"""A point that the law follows wherever it goes says nothing about noise."""
_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Bootstrap:
    """Laws refitted to redrawn measurements. ``laws`` is one law whose numbers are arrays of shape [draws, 1], so that
    ``laws.predict(N, V)`` of k pairs is [draws, k]: from it comes, draw by draw, which of k choices is best.

    ``residual`` draws keep the measured grid and redraw the deviations from the law: what the law does not describe
    counts as noise. ``size`` draws take whole LLMs, each with all its token counts, with replacement: also deviations
    that an LLM's points share count, but few LLMs give few different draws.
    """

    kind: Literal["residual", "size"]
    fit: Fit
    laws: ScalingLaw

    def parameters(self, level: float = 0.95) -> dict[str, Interval]:
        """An interval for each of the law's numbers by itself."""
        return {name: _interval(np.asarray(value), level) for name, value in self.laws.parameters.items()}

    def ratio(self, level: float = 0.95) -> Interval:
        """How many times faster the error falls with log N than with log V, in the middle of the measured points."""
        return _interval(self.laws.ratio(*self.fit.middle), level)

    def optimal_visual_tokens(
        self, text_tokens: float, tokens: tuple[float, float], flops: float | None = None, level: float = 0.95
    ) -> Interval | None:
        """The law's optimum (``ScalingLaw.optimal_visual_tokens``), which may depend on a budget."""
        optimum = self.laws.optimal_visual_tokens(text_tokens, tokens, flops)
        return None if optimum is None else _interval(optimum, level)

    def predictions(self, N: npt.ArrayLike, V: npt.ArrayLike, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
        """Low and high ends [k] for the error that the law gives at each of k pairs; a new measurement adds noise."""
        return _quantiles(self.laws.predict(N, V), level)


def residual_bootstrap(fit: Fit, draws: int = DRAWS, seed: int = 0) -> Bootstrap:
    """Refit to the law's predictions plus residuals drawn with replacement, all draws in one computation.

    A fit leaves its own points smaller residuals than it would leave others; each is divided by sqrt(1 - leverage)
    first. The size of the noise is itself an estimate, from n points less p free numbers: each draw has one of its own,
    sqrt((n - p) / chi squared) times the estimated, so that intervals hold their level on small grids too (Student's t
    instead of normal). Raises UserError where n = p, which leaves no residuals at all.
    """
    points, form = _checked(fit).points, fit.points.form(fit.law.form)
    root = np.sqrt(points.weights)
    gradients = free_gradients(form, fit.solution)[0] * root
    # An orthonormal basis of what the law can follow at its optimum; its squared rows are the leverages.
    basis, sizes, _ = np.linalg.svd(gradients.T, full_matrices=False)
    basis = basis[:, sizes > sizes[0] * _RANK_TOLERANCE]
    leverage = np.square(basis).sum(-1)
    redrawable = leverage < _FULL_LEVERAGE
    num_points, num_free = basis.shape
    if num_points <= num_free:
        raise UserError(
            f"{num_points} points leave no deviations from a law of {num_free} numbers, so there is no interval: "
            "measure more."
        )
    residuals = (fit.solution.residuals[0] * root)[redrawable] / np.sqrt(1 - leverage[redrawable])
    residuals -= residuals.mean()
    random = np.random.default_rng(seed)
    freedom = num_points - num_free
    noise = np.sqrt(freedom / random.chisquare(freedom, (draws, 1)))
    drawn = noise * random.choice(residuals, (draws, num_points))
    error = points.error - fit.solution.residuals[0] + drawn / root
    solution = solve(form, error, points.weights[None], fit.starts(len(error)))
    return Bootstrap("residual", fit, form.law(solution.theta[:, None], solution.coefficients[:, None]))


def size_bootstrap(fit: Fit, draws: int = DRAWS, seed: int = 0) -> Bootstrap:
    """Refit to LLM sizes drawn with replacement, leaving out draws that cannot identify a law.

    Raises UserError below four sizes.
    """
    points, form = _checked(fit).points, fit.points.form(fit.law.form)
    sizes, size_of_point = np.unique(points.N, return_inverse=True)
    if len(sizes) < _MIN_SIZES:
        raise UserError(f"Redrawing sizes needs {_MIN_SIZES} of them, and {len(sizes)} were measured: measure more.")
    random = np.random.default_rng(seed)
    kept = np.empty((0, len(sizes)))
    while len(kept) < draws:
        times_drawn = random.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), draws)
        unique, index = np.unique(times_drawn, axis=0, return_inverse=True)
        usable = np.array([unidentified(points.only(times[size_of_point] > 0)) is None for times in unique])
        kept = np.concatenate([kept, times_drawn[usable[index.ravel()]]])
    # Many draws are equal when sizes are few: a point drawn twice is one of twice the weight.
    unique, index = np.unique(kept[:draws], axis=0, return_inverse=True)
    solution = solve(form, points.error[None], unique[:, size_of_point] * points.weights, fit.starts(len(unique)))
    laws = form.law(solution.theta[:, None], solution.coefficients[:, None])
    return Bootstrap("size", fit, map_parameters(laws, lambda value: value[index.ravel()]))


def _checked(fit: Fit) -> Fit:
    if fit.loss != "squared":
        raise ValueError(f"intervals are those of least squares, not of the {fit.loss} loss")
    return fit


def _interval(values: FloatArray, level: float) -> Interval:
    low, high = _quantiles(values, level)
    return float(low.item()), float(high.item())


def _quantiles(values: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    """Percentile interval over the first axis. Draws without a value (a ratio of 0 to 0) are left out."""
    # Values that were drawn, nothing between them: a ratio may be infinite.
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")
    return low, high
