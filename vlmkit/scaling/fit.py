"""Fit a scaling law to measured errors: by least squares or, as a check beside it, Huber's loss on log residuals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from vlmkit.errors import UserError
from vlmkit.scaling.laws import FloatArray, FormName, ScalingLaw
from vlmkit.scaling.separable import FORMS, SeparableForm, map_parameters
from vlmkit.scaling.variable_projection import Solution, solve

Loss = Literal["squared", "huber"]

HUBER_DELTA = 1e-3
"""Log residual (0.1 % of the error) up to which Huber's loss is a square; that of the Chinchilla fits (2404.10102)."""
_MIN_LEVELS = 3
"""Sizes, and token counts, below which a power law and its floor cannot be told apart."""
_FLOOR_TOLERANCE = 1e-6
"""A floor below this is on its bound."""
_MAX_REWEIGHTINGS = 1000
_REWEIGHTING_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Points:
    """Measured points, all of shape [n]: sizes in billions, visual tokens, errors, and weights that average to 1."""

    N: FloatArray
    V: FloatArray
    error: FloatArray
    weights: FloatArray

    def form(self, name: FormName, has_floor: bool = True) -> SeparableForm:
        """The form at these points; without a floor where the caller takes one off the errors."""
        return FORMS[name](np.log(self.N), np.log(self.V), has_floor)

    def only(self, chosen: npt.NDArray[np.bool_]) -> Points:
        """The points where ``chosen`` [n] is true."""
        return Points(self.N[chosen], self.V[chosen], self.error[chosen], self.weights[chosen])


@dataclass(frozen=True)
class Fit:
    """A fitted law and what is known about its quality.

    ``sum_of_squares`` is that of predicted - measured, weighted, whatever the loss. ``max_relative_error`` is the
    largest |predicted - measured| / measured error over the points (points without any error left out). ``at_bound``
    names the parameters that ended on a bound of their range. ``solution`` is the law in the coordinates of the search.
    """

    law: ScalingLaw
    loss: Loss
    sum_of_squares: float
    max_relative_error: float
    at_bound: tuple[str, ...]
    points: Points = field(repr=False, compare=False)
    solution: Solution = field(repr=False, compare=False)

    def starts(self, count: int) -> FloatArray:
        """Coordinates [count, d] from which to refit to as many other sets of errors or weights at these points."""
        return np.repeat(self.solution.theta, count, axis=0)

    @property
    def describes(self) -> bool:
        """Whether the law comes near every measured point: within half of its error."""
        return self.max_relative_error <= 0.5

    @property
    def num_points(self) -> int:
        return len(self.points.error)

    @property
    def sizes(self) -> tuple[float, float]:
        """The measured sizes, in billions; a prediction outside them is an extrapolation."""
        return float(self.points.N.min()), float(self.points.N.max())

    @property
    def tokens(self) -> tuple[float, float]:
        """The measured token counts; a prediction outside them is an extrapolation."""
        return float(self.points.V.min()), float(self.points.V.max())

    @property
    def middle(self) -> tuple[float, float]:
        """Size and token count in the middle of the points: their geometric means."""
        return float(np.exp(np.log(self.points.N).mean())), float(np.exp(np.log(self.points.V).mean()))


def fit_law(
    form: FormName,
    N: npt.ArrayLike,
    V: npt.ArrayLike,
    error: npt.ArrayLike,
    *,
    standard_errors: npt.ArrayLike | None = None,
    loss: Loss = "squared",
) -> Fit:
    """Fit a law of the given form to points of shape [n]: sizes in billions, visual tokens, errors.

    ``squared`` minimises the squared differences of the errors, exactly in the coefficients, which are not negative,
    and the floor, which is in [0, 1). ``huber`` minimises Huber's loss of log(predicted / measured). A point weighs by
    the inverse square of its standard error where these are given (one of 0 counts as the smallest other). The same
    points give the same digits. Raises UserError where the points cannot identify the law.
    """
    points = _points(N, V, error, standard_errors)
    reason = unidentified(points)
    if reason:
        raise UserError(reason)
    shape = points.form(form)
    solution = _minimise_huber(shape, points) if loss == "huber" else _minimise_squares(shape, points)
    law = map_parameters(shape.law(solution.theta[0], solution.coefficients[0]), float)
    residuals = law.predict(points.N, points.V) - points.error
    positive = points.error > 0
    return Fit(
        law,
        loss,
        sum_of_squares=float((points.weights * np.square(residuals)).sum()),
        max_relative_error=float((np.abs(residuals)[positive] / points.error[positive]).max()),
        at_bound=_at_bound(law, shape, solution),
        points=points,
        solution=solution,
    )


def _points(N: npt.ArrayLike, V: npt.ArrayLike, error: npt.ArrayLike, stderr: npt.ArrayLike | None) -> Points:
    N, V, error = (np.asarray(column, dtype=np.float64) for column in (N, V, error))
    weights = np.ones(len(error))
    if stderr is not None:
        deviation = np.asarray(stderr, dtype=np.float64)
        positive = deviation[deviation > 0]
        if len(positive):
            weights = np.maximum(deviation, positive.min()) ** -2
    return Points(N, V, error, weights / weights.mean())


def _minimise_squares(form: SeparableForm, points: Points) -> Solution:
    return solve(form, points.error[None], points.weights[None])


def _minimise_huber(form: SeparableForm, points: Points) -> Solution:
    """Least squares again and again, each point weighed so that the gradient is that of Huber's loss.

    With weights psi(r) / (p (p - e)), r = log(p / e), of the predictions p and errors e, the stationary point of the
    weighted squares is that of the loss, coefficients on their bounds included.
    """
    error = points.error
    if (error <= 0).any():
        raise UserError("Huber's loss takes the logarithm of the error, and a measured one is 0: use the squared loss.")
    weights = points.weights / error**2
    solution = solve(form, error[None], weights[None])
    for _ in range(_MAX_REWEIGHTINGS):
        predicted = error - solution.residuals[0]
        if (predicted <= 0).any():
            raise UserError("The law predicts an error below 0, which has no logarithm: use the squared loss.")
        log_residual = np.log(predicted / error)
        difference = predicted / error - 1
        # The quotient log(1 + x) / x is 1 at x = 0.
        slope = np.divide(log_residual, difference, out=np.ones_like(error), where=np.abs(difference) > 1e-8)
        clipping = HUBER_DELTA / np.maximum(np.abs(log_residual), HUBER_DELTA)
        weights = points.weights * clipping * slope / (predicted * error)
        previous, solution = solution, solve(form, error[None], weights[None], start=solution.theta)
        if np.abs(solution.residuals - previous.residuals).max() < _REWEIGHTING_TOLERANCE * error.min():
            break
    return solution


def _at_bound(law: ScalingLaw, form: SeparableForm, solution: Solution) -> tuple[str, ...]:
    hit = {name: value == 0 for name, value in law.parameters.items()}
    if law.floor is not None:
        hit["D"] = law.floor < _FLOOR_TOLERANCE
    on_end = (solution.theta[0] == form.ranges.T).any(0)
    if len(on_end) and on_end[1]:
        # The second coordinate is the length of (alpha, beta) in one form and beta in the other.
        hit["beta"] = True
    if len(on_end) and (on_end[1] if law.form == "product" else on_end[0]):
        hit["alpha"] = True
    return tuple(name for name, is_hit in hit.items() if is_hit)


def unidentified(points: Points) -> str | None:
    """Why these points cannot identify a law, and what to measure; None where they can."""
    N, V, error = points.N, points.V, points.error
    for what, values, more in (("LLM size", N, "size"), ("visual token count", V, "token count")):
        levels = len(set(values.tolist()))
        missing = _MIN_LEVELS - levels
        if missing > 0:
            return (
                f"The measurements hold only {levels} {what}{'s' * (missing < 2)} but the law needs "
                f"{_MIN_LEVELS}: measure {missing} more {more}{'s' * (missing > 1)}."
            )
    cells = np.array(sorted({*zip(np.log(N).tolist(), np.log(V).tolist(), strict=True)}))
    if len(cells) < 5 or np.linalg.matrix_rank(cells - cells.mean(0), tol=1e-6) < 2:
        return (
            "The measured sizes and token counts vary together, so their effects cannot be told apart: "
            "measure at least one LLM at several token counts and one token count with several LLMs."
        )
    if np.ptp(error) == 0:
        return f"All measured errors equal {error[0]:.3g}, so there is nothing to fit: measure harder questions."
    return None
