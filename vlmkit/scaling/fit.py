"""Least-squares fit of the product law by variable projection: search two exponents, solve the rest exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlmkit.errors import UserError
from vlmkit.scaling.laws import FloatArray, ProductLaw

_MIN_LEVELS = 3
"""Sizes, and token counts, below which a power law and its floor cannot be told apart."""
_LENGTHS = (1e-4, 10.0)
"""Range searched for the length of (alpha, beta)."""
_NODES = 17
"""Nodes of the search window in each direction; odd, so that its centre is a node."""
_RESOLUTION = 1e-9
"""Half-width of the window at which the search ends, relative to the whole range; rounding hides anything finer."""
_MAX_ROUNDS = 100
_FLOOR_TOLERANCE = 1e-6
"""A floor below this is on its bound."""


@dataclass(frozen=True)
class Fit:
    """A fitted law and what is known about its quality.

    ``max_relative_error`` is the largest |predicted - measured| / measured error over the points (points without
    any error left out). ``at_bound`` names the parameters that ended on a bound of their range (of ``alpha``, ``beta``
    and ``D``).
    ``sizes`` (billions) and ``tokens`` are the measured ranges; outside them a prediction is an extrapolation.
    """

    law: ProductLaw
    max_relative_error: float
    at_bound: tuple[str, ...]
    num_points: int
    sizes: tuple[float, float]
    tokens: tuple[float, float]


def fit_product_law(N: npt.ArrayLike, V: npt.ArrayLike, error: npt.ArrayLike) -> Fit:
    """Fit error = A N^-alpha V^-beta + D to points of shape [n], minimising the sum of squared errors.

    For given exponents A >= 0 and D in [0, 1) are solved exactly (variable projection, arXiv 2603.22339). The exponents
    are searched in polar form: their direction is the ratio alpha/beta, which data determine well, and their length
    trades with D, which they hardly determine; along these axes the valley of the objective lies straight. The search
    is deterministic. Raises UserError where the points cannot identify the law.
    """
    N, V, error = (np.asarray(column, dtype=np.float64) for column in (N, V, error))
    _check_identifiable(N, V, error)
    # Centred logarithms keep the basis near 1 for any unit and any exponent.
    log_N, log_V = np.log(N), np.log(V)
    centre_N, centre_V = log_N.mean(), log_V.mean()

    def solve(angle: FloatArray, log_length: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        length = np.exp(log_length)
        alpha, beta = length * np.cos(angle), length * np.sin(angle)
        basis = np.exp(-np.multiply.outer(alpha, log_N - centre_N) - np.multiply.outer(beta, log_V - centre_V))
        return _solve_linear(basis, error)

    ranges = np.array([[0.0, np.pi / 2], np.log(_LENGTHS)])
    best = _search(lambda angle, log_length: solve(angle, log_length)[2], ranges)
    slope, floor, _ = solve(*best[:, None])
    angle, log_length = best
    # cos(pi/2) is not exactly 0 in floating point, the bound is.
    alpha = 0.0 if angle == ranges[0, 1] else float(np.exp(log_length) * np.cos(angle))
    beta = float(np.exp(log_length) * np.sin(angle))
    law = ProductLaw(float(slope[0] * np.exp(alpha * centre_N + beta * centre_V)), alpha, beta, float(floor[0]))

    on_length_bound = log_length in ranges[1]
    hit = {"alpha": alpha == 0 or on_length_bound, "beta": beta == 0 or on_length_bound, "D": law.D < _FLOOR_TOLERANCE}
    positive = error > 0
    relative = np.abs(law.predict(N, V) - error)[positive] / error[positive]
    return Fit(
        law,
        max_relative_error=float(relative.max()),
        at_bound=tuple(name for name, is_hit in hit.items() if is_hit),
        num_points=len(error),
        sizes=(float(N.min()), float(N.max())),
        tokens=(float(V.min()), float(V.max())),
    )


def _check_identifiable(N: FloatArray, V: FloatArray, error: FloatArray) -> None:
    for what, values, more in (("LLM size", N, "size"), ("visual token count", V, "token count")):
        levels = len(set(values.tolist()))
        missing = _MIN_LEVELS - levels
        if missing > 0:
            raise UserError(
                f"The measurements hold only {levels} {what}{'s' * (missing < 2)} but the law needs "
                f"{_MIN_LEVELS}: measure {missing} more {more}{'s' * (missing > 1)}."
            )
    cells = np.array(sorted({*zip(np.log(N).tolist(), np.log(V).tolist(), strict=True)}))
    if len(cells) < 5 or np.linalg.matrix_rank(cells - cells.mean(0), tol=1e-6) < 2:
        raise UserError(
            "The measured sizes and token counts vary together, so their effects cannot be told apart: "
            "measure at least one LLM at several token counts and one token count with several LLMs."
        )
    if np.ptp(error) == 0:
        raise UserError(
            f"All measured errors equal {error[0]:.3g}, so there is nothing to fit: measure harder questions."
        )


def _solve_linear(basis: FloatArray, error: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Slope >= 0, floor >= 0 and sum of squares of the best line from each row of ``basis`` [..., n] to ``error`` [n].

    The floor stays below 1 by itself: the line passes through the means with a slope that is not negative.
    """
    mean, mean_error = basis.mean(-1), error.mean()
    centred = basis - mean[..., None]
    slope = np.maximum(centred @ (error - mean_error) / np.square(centred).sum(-1), 0)
    floor = mean_error - slope * mean
    through_origin = basis @ error / np.square(basis).sum(-1)
    slope, floor = np.where(floor < 0, through_origin, slope), np.maximum(floor, 0)
    residual = slope[..., None] * basis + floor[..., None] - error
    return slope, floor, np.square(residual).sum(-1)


def _search(objective: Callable[[FloatArray, FloatArray], FloatArray], ranges: FloatArray) -> FloatArray:
    """Minimise over the rectangle ``ranges`` [2, 2] by a window that follows its best node and shrinks around it."""
    centre, half = ranges.mean(1), np.ptp(ranges, axis=1) / 2
    smallest = half * _RESOLUTION
    for _ in range(_MAX_ROUNDS):
        low, high = np.maximum(centre - half, ranges[:, 0]), np.minimum(centre + half, ranges[:, 1])
        axes = np.linspace(low, high, _NODES, axis=1)
        values = objective(*np.meshgrid(axes[0], axes[1], indexing="ij"))
        index = np.array(np.unravel_index(np.argmin(values), values.shape))
        centre = axes[[0, 1], index]
        at_edge = ((index == 0) & (low > ranges[:, 0])) | ((index == _NODES - 1) & (high < ranges[:, 1]))
        # A best node on the window's edge means that the valley leads out of it: follow before shrinking.
        half = np.where(at_edge, half, 2 * (high - low) / (_NODES - 1))
        if np.all(half < smallest):
            break
    return centre
