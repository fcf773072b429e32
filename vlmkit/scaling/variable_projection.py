"""Least squares for many sets of errors at once: search the coordinates of a form, solve its coefficients exactly.

Variable projection (arXiv 2603.22339): a first grid, whose columns all problems share, gives every problem its start;
Newton's method in the coordinates, with the coefficients eliminated, goes on from there. Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from vlmkit.scaling.laws import FloatArray
from vlmkit.scaling.separable import SeparableForm

_MAX_VALLEYS = 3
_RIVAL = 2.0
"""Each problem is searched from so many valleys of the first grid at most, and from those whose sum of squares is at
most so many times that of the deepest: noise makes rivals, and points that follow a law have one valley."""
_LOW_FLOOR = 0.1
"""A floor below this share of the mean error may belong on its bound."""
_MAX_STEPS = 100
_KINK_STEPS = 8
"""Steps after which a problem whose floor is on its bound is left to the search without a floor: along the kink that
the bound makes, steps only get shorter."""
_STEP_TOLERANCE = 1e-7
"""Change of the coordinates (radians, natural logarithms) at which the search ends: near the optimum a step is about
the square of the one before, so the next would be lost in rounding."""
_LONGEST_STEP = 1.0
_DIFFERENCE = 1e-4
"""Distance of the gradients that the Hessian is taken from: the rounding of the gradients and the difference's own
error are both far below the smallest curvature."""
_ROUNDING = 1e-13
"""A sum of squares that rises by less, relatively, has not risen: the gradient is known better than the sum."""


@dataclass(frozen=True)
class Solution:
    """Of m problems: coordinates [m, d], coefficients [m, k], residuals error - prediction [m, n] and their weighted
    sums of squares [m]."""

    theta: FloatArray
    coefficients: FloatArray
    residuals: FloatArray
    squares: FloatArray

    def _take(self, index: npt.NDArray[np.intp]) -> Solution:
        return Solution(self.theta[index], self.coefficients[index], self.residuals[index], self.squares[index])

    def _improve(self, index: npt.NDArray[np.intp], other: Solution) -> None:
        """Take the solutions of ``other``, whose problems are these at ``index``, where they are no worse."""
        better = other.squares <= self.squares[index] * (1 + _ROUNDING)
        for mine, others in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[index[better]] = others[better]


def solve(form: SeparableForm, error: FloatArray, weights: FloatArray, start: FloatArray | None = None) -> Solution:
    """Minimise sum of weights (error - prediction)^2 for each row of ``error`` [m, n] and ``weights`` [m, n].

    Either may have one row for all. ``start`` [m, d] takes the place of the first grid. Coefficients that may not be
    negative are not; a floor then stays below 1 by itself, because with one the residuals average to 0.
    """
    shape = np.broadcast_shapes(error.shape, weights.shape)
    starts = _search_grid(form, error, weights) if start is None else [(np.arange(len(start)), start)]
    error, weights = np.broadcast_to(error, shape), np.broadcast_to(weights, shape)
    best = _evaluate(form, error, weights, np.broadcast_to(starts[0][1], (shape[0], len(form.ranges))))
    for problems, theta in starts:
        rows, row_weights = error[problems], weights[problems]
        best._improve(problems, _refine(form, rows, row_weights, theta))
    if _is_bounded(form):
        low = np.flatnonzero(best.coefficients[:, -1] < _LOW_FLOOR * error.mean(-1))
        bare = _refine(replace(form, has_floor=False), error[low], weights[low], best.theta[low])
        coefficients = np.append(bare.coefficients, np.zeros((len(low), 1)), axis=1)
        best._improve(low, replace(bare, coefficients=coefficients))
        # The best without a floor may be better still with one.
        lifted = low[_evaluate(form, error[low], weights[low], best.theta[low]).coefficients[:, -1] > 0]
        best._improve(lifted, _refine(form, error[lifted], weights[lifted], best.theta[lifted]))
    return best


def _is_bounded(form: SeparableForm) -> bool:
    """Whether the form has a floor that may not be negative."""
    return form.has_floor and form.nonnegative[-1]


def free_gradients(form: SeparableForm, solution: Solution) -> FloatArray:
    """Derivatives [m, d + k, n] of the predictions by coordinates and coefficients; rows of 0 for those on a bound."""
    theta, coefficients = solution.theta, solution.coefficients
    inside = (theta > form.ranges[:, 0]) & (theta < form.ranges[:, 1])
    free = (coefficients != 0) | ~np.array(form.nonnegative)
    derivatives = form.derivatives(theta, coefficients) * inside[..., None]
    return np.concatenate([derivatives, form.columns(theta) * free[..., None]], axis=-2)


def _search_grid(
    form: SeparableForm, error: FloatArray, weights: FloatArray
) -> list[tuple[npt.NDArray[np.intp], FloatArray]]:
    """Starts as (problems, coordinates): the best node for every problem, then the second valley for those that have
    one, and so on."""
    axes = [np.linspace(low, high, count) for (low, high), count in zip(form.ranges, form.num_nodes, strict=True)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes)) if axes else np.empty((1, 0))
    columns = form.columns(nodes)
    products = columns[:, :, None] * columns[:, None]
    # One matrix product for all problems: the columns of a node are the same in each.
    gram = np.tensordot(weights, products, (-1, -1))
    moment = np.tensordot(weights * error, columns, (-1, -1))
    _, explained = _solve_nonnegative(gram, moment, form.nonnegative)
    squares = (weights * np.square(error)).sum(-1, keepdims=True) - explained
    depth = np.where(_is_valley(squares, form.num_nodes), squares, np.inf)
    order = np.argsort(depth, axis=-1, kind="stable")[:, :_MAX_VALLEYS]
    found = np.take_along_axis(depth, order, axis=-1)
    worthwhile = found <= _RIVAL * found[:, :1]
    worthwhile[:, 0] = True
    return [(np.flatnonzero(tried), nodes[order[tried, rank]]) for rank, tried in enumerate(worthwhile.T)]


def _is_valley(values: FloatArray, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Whether each value of a flattened grid [m, prod(shape)] is no higher than its neighbours along the axes."""
    grid = values.reshape(-1, *shape)
    valley = np.ones(grid.shape, dtype=bool)
    for axis in range(1, grid.ndim):
        change = np.diff(grid, axis=axis)
        outside = np.zeros_like(change.take([0], axis=axis))
        valley &= np.concatenate([outside, change], axis=axis) <= 0
        valley &= np.concatenate([change, outside], axis=axis) >= 0
    return valley.reshape(values.shape)


def _refine(form: SeparableForm, error: FloatArray, weights: FloatArray, theta: FloatArray) -> Solution:
    """Newton's method in the coordinates, within their ranges; each problem shortens its steps until they descend."""
    best = _evaluate(form, error, weights, theta)
    length = np.ones(len(theta))
    running = np.arange(len(theta))
    for count in range(_MAX_STEPS if theta.shape[1] else 0):
        if not len(running):
            break
        current = best._take(running)
        step = length[running, None] * _newton_step(form, error[running], weights[running], current)
        moved = np.clip(current.theta + step, form.ranges[:, 0], form.ranges[:, 1])
        trial = _evaluate(form, error[running], weights[running], moved)
        better = trial.squares <= current.squares * (1 + _ROUNDING)
        length[running] = np.where(better, np.minimum(4 * length[running], 1), length[running] / 4)
        best._improve(running, trial)
        moving = np.abs(moved - current.theta).max(-1) > _STEP_TOLERANCE
        if count >= _KINK_STEPS and _is_bounded(form):
            moving &= best.coefficients[running, -1] > 0
        running = running[moving]
    return best


def _evaluate(form: SeparableForm, error: FloatArray, weights: FloatArray, theta: FloatArray) -> Solution:
    columns = form.columns(theta)
    weighted = columns * weights[:, None]
    gram, moment = weighted @ columns.swapaxes(-1, -2), (weighted @ error[..., None])[..., 0]
    coefficients, _ = _solve_nonnegative(gram, moment, form.nonnegative)
    residuals = error - (coefficients[:, None] @ columns)[:, 0]
    return Solution(theta.copy(), coefficients, residuals, (weights * np.square(residuals)).sum(-1))


def _gradient(form: SeparableForm, at: Solution, weights: FloatArray) -> FloatArray:
    """Derivatives [m, d] of half the sums of squares; the coefficients, at their optimum, add nothing."""
    return -(form.derivatives(at.theta, at.coefficients) @ (weights * at.residuals)[..., None])[..., 0]


def _newton_step(form: SeparableForm, error: FloatArray, weights: FloatArray, at: Solution) -> FloatArray:
    """The change of the coordinates [m, d] while the coefficients follow; 0 across a bound that holds a coordinate.

    The Hessian is the central difference of the gradient, which is exact. Gauss-Newton, which needs no difference,
    overshoots where exponents trade with coefficients: there the residuals' own curvature is as large as the rest.
    """
    problems, dimensions = at.theta.shape
    offsets = _DIFFERENCE * np.concatenate([np.eye(dimensions), -np.eye(dimensions)])
    beside = (at.theta[:, None] + offsets).reshape(-1, dimensions)
    repeated_error, repeated_weights = (np.repeat(rows, len(offsets), axis=0) for rows in (error, weights))
    around = _evaluate(form, repeated_error, repeated_weights, beside)
    gradients = _gradient(form, around, repeated_weights).reshape(problems, 2, dimensions, dimensions)
    hessian = (gradients[:, 0] - gradients[:, 1]) / (2 * _DIFFERENCE)
    gradient = _gradient(form, at, weights)
    low, high = form.ranges.T
    free = ~(((at.theta <= low) & (gradient > 0)) | ((at.theta >= high) & (gradient < 0)))
    both = free[:, :, None] & free[:, None]
    hessian = np.where(both, (hessian + hessian.swapaxes(-1, -2)) / 2, 0.0)
    values, vectors = np.linalg.eigh(hessian)
    # Absolute curvatures descend from saddles too.
    along = (vectors.swapaxes(-1, -2) @ (gradient * free)[..., None])[..., 0]
    curvature = np.maximum(np.abs(values), np.finfo(np.float64).tiny)
    step = -(vectors @ np.divide(along, curvature, where=along != 0, out=np.zeros_like(along))[..., None])[..., 0]
    return np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)


def _solve_nonnegative(
    gram: FloatArray, moment: FloatArray, nonnegative: tuple[bool, ...]
) -> tuple[FloatArray, FloatArray]:
    """Coefficients [..., k] that minimise c' gram c - 2 c' moment, with the part of the sum of squares they explain.

    Exact: of all choices of which coefficients are 0, the best whose others have the sign they must have.
    """
    coefficients = np.zeros(moment.shape)
    explained = np.zeros(moment.shape[:-1])
    for chosen in product((True, False), repeat=sum(nonnegative)):
        choices = iter(chosen)
        used = [index for index, bound in enumerate(nonnegative) if not bound or next(choices)]
        if not used:
            continue
        solved = _solve_definite(gram[..., used, :][..., used], moment[..., used])
        gain = (solved * moment[..., used]).sum(-1)
        signs = np.array([nonnegative[index] for index in used])
        better = ((solved >= 0) | ~signs).all(-1) & (gain > explained)
        explained = np.where(better, gain, explained)
        filled = np.zeros(moment.shape)
        filled[..., used] = solved
        coefficients = np.where(better[..., None], filled, coefficients)
    return coefficients, explained


def _solve_definite(matrix: FloatArray, right: FloatArray) -> FloatArray:
    """Solutions [..., k] of small positive definite systems by elimination over all of them at once; not finite where a
    system is singular. ``matrix`` [..., k, k] may have fewer batch axes than ``right`` [..., k]."""
    rows = [[matrix[..., i, j] for j in range(right.shape[-1])] for i in range(right.shape[-1])]
    values = [right[..., i] for i in range(right.shape[-1])]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for i, pivot in enumerate(rows):
            for j in range(i + 1, len(rows)):
                factor = rows[j][i] / pivot[i]
                rows[j] = [below - factor * above for below, above in zip(rows[j], pivot, strict=True)]
                values[j] = values[j] - factor * values[i]
        for i in reversed(range(len(rows))):
            known = sum((rows[i][j] * values[j] for j in range(i + 1, len(rows))), start=np.zeros(()))
            values[i] = (values[i] - known) / rows[i][i]
    return np.stack(values, axis=-1)
