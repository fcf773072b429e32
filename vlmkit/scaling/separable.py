"""The laws as least squares sees them: coefficients times columns, which depend on at most two coordinates.

A form is made for one set of points [n]. Its coordinates ``theta`` [..., d] give the columns [..., k, n] and, with
coefficients [..., k], the derivatives [..., d, n] of the prediction; leading axes are any batch. Logarithms are
centred, which keeps the columns near 1 for any unit of N and any exponent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlmkit.scaling.laws import AdditiveLaw, FloatArray, FormName, LogLinearLaw, Parameter, ProductLaw, ScalingLaw

_EXPONENTS = (1e-4, 10.0)
"""Range searched for the length of (alpha, beta), or for each of them."""


@dataclass(frozen=True)
class SeparableForm(ABC):
    """A form at points with the natural logarithms ``log_N`` and ``log_V`` [n].

    ``has_floor``: whether the last column is constant (a caller that holds the floor takes it off the errors instead).
    """

    log_N: FloatArray
    log_V: FloatArray
    has_floor: bool = True

    ranges: ClassVar[FloatArray]
    """Low and high end of each coordinate, [d, 2]."""
    num_nodes: ClassVar[tuple[int, ...]]
    """Nodes of the first search along each coordinate."""

    @property
    @abstractmethod
    def nonnegative(self) -> tuple[bool, ...]:
        """Whether each coefficient may not be negative, [k]."""

    @abstractmethod
    def columns(self, theta: FloatArray) -> FloatArray:
        """[..., k, n]."""

    @abstractmethod
    def derivatives(self, theta: FloatArray, coefficients: FloatArray) -> FloatArray:
        """[..., d, n]."""

    @abstractmethod
    def law(self, theta: FloatArray, coefficients: FloatArray) -> ScalingLaw:
        """The law in the units of the points; its numbers have the batch's shape."""

    @property
    def centres(self) -> tuple[float, float]:
        return float(self.log_N.mean()), float(self.log_V.mean())

    @property
    def centred(self) -> tuple[FloatArray, FloatArray]:
        centre_N, centre_V = self.centres
        return self.log_N - centre_N, self.log_V - centre_V

    def _stack(self, *columns: FloatArray) -> FloatArray:
        constant = (np.ones_like(columns[0]),) if self.has_floor else ()
        return np.stack([*columns, *constant], axis=-2)

    def _floor(self, coefficients: FloatArray) -> FloatArray:
        return coefficients[..., -1] if self.has_floor else np.zeros(coefficients.shape[:-1])


@dataclass(frozen=True)
class ProductForm(SeparableForm):
    """Coordinates: the angle and the log length of (alpha, beta).

    The angle is the ratio alpha/beta, which data determine well; the length trades with D, which they hardly determine.
    Along these axes the valley of the objective lies straight.
    """

    ranges: ClassVar[FloatArray] = np.array([[0.0, np.pi / 2], np.log(_EXPONENTS)])
    num_nodes: ClassVar[tuple[int, ...]] = (33, 17)

    @property
    def nonnegative(self) -> tuple[bool, ...]:
        return (True,) * (1 + self.has_floor)

    def _exponents(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        angle, length = theta[..., 0], np.exp(theta[..., 1])
        # cos(pi/2) is not exactly 0 in floating point, the bound is.
        return np.where(angle == self.ranges[0, 1], 0.0, length * np.cos(angle)), length * np.sin(angle)

    def columns(self, theta: FloatArray) -> FloatArray:
        alpha, beta = self._exponents(theta)
        log_N, log_V = self.centred
        return self._stack(np.exp(-alpha[..., None] * log_N - beta[..., None] * log_V))

    def derivatives(self, theta: FloatArray, coefficients: FloatArray) -> FloatArray:
        alpha, beta = (exponent[..., None] for exponent in self._exponents(theta))
        log_N, log_V = self.centred
        term = coefficients[..., :1] * np.exp(-alpha * log_N - beta * log_V)
        return np.stack([term * (beta * log_N - alpha * log_V), -term * (alpha * log_N + beta * log_V)], axis=-2)

    def law(self, theta: FloatArray, coefficients: FloatArray) -> ProductLaw:
        alpha, beta = self._exponents(theta)
        centre_N, centre_V = self.centres
        A = coefficients[..., 0] * np.exp(alpha * centre_N + beta * centre_V)
        return ProductLaw(A, alpha, beta, self._floor(coefficients))


@dataclass(frozen=True)
class AdditiveForm(SeparableForm):
    """Coordinates: log alpha and log beta, each of which shapes one column."""

    ranges: ClassVar[FloatArray] = np.log([_EXPONENTS, _EXPONENTS])
    num_nodes: ClassVar[tuple[int, ...]] = (17, 17)

    @property
    def nonnegative(self) -> tuple[bool, ...]:
        return (True,) * (2 + self.has_floor)

    def _powers(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        log_N, log_V = self.centred
        alpha, beta = np.exp(theta[..., 0, None]), np.exp(theta[..., 1, None])
        return np.exp(-alpha * log_N), np.exp(-beta * log_V)

    def columns(self, theta: FloatArray) -> FloatArray:
        return self._stack(*self._powers(theta))

    def derivatives(self, theta: FloatArray, coefficients: FloatArray) -> FloatArray:
        logs, exponents = np.stack(self.centred), np.exp(theta)
        return -coefficients[..., :2, None] * exponents[..., None] * logs * np.stack(self._powers(theta), axis=-2)

    def law(self, theta: FloatArray, coefficients: FloatArray) -> AdditiveLaw:
        alpha, beta = np.exp(theta[..., 0]), np.exp(theta[..., 1])
        centre_N, centre_V = self.centres
        A, B = coefficients[..., 0] * np.exp(alpha * centre_N), coefficients[..., 1] * np.exp(beta * centre_V)
        return AdditiveLaw(A, alpha, B, beta, self._floor(coefficients))


@dataclass(frozen=True)
class LogLinearForm(SeparableForm):
    """No coordinates: the slopes are coefficients. The constant is no floor and may have either sign."""

    ranges: ClassVar[FloatArray] = np.empty((0, 2))
    num_nodes: ClassVar[tuple[int, ...]] = ()

    @property
    def nonnegative(self) -> tuple[bool, ...]:
        return (True, True, False)

    def columns(self, theta: FloatArray) -> FloatArray:
        shape = (*theta.shape[:-1], len(self.log_N))
        return self._stack(*(np.broadcast_to(-log, shape) for log in self.centred))

    def derivatives(self, theta: FloatArray, coefficients: FloatArray) -> FloatArray:
        return np.empty((*theta.shape, len(self.log_N)))

    def law(self, theta: FloatArray, coefficients: FloatArray) -> LogLinearLaw:
        alpha, beta, constant = (coefficients[..., index] for index in range(3))
        centre_N, centre_V = self.centres
        return LogLinearLaw(constant + alpha * centre_N + beta * centre_V, alpha, beta)


FORMS: dict[FormName, type[SeparableForm]] = {
    "product": ProductForm,
    "additive": AdditiveForm,
    "log-linear": LogLinearForm,
}


def map_parameters(law: ScalingLaw, change: Callable[[FloatArray], Parameter]) -> ScalingLaw:
    """The law with every number changed, such as an array to a float."""
    return type(law)(**{name: change(np.asarray(value)) for name, value in law.parameters.items()})
