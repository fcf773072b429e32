"""How the error of a vision-language model depends on the size of its LLM and the number of its visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
Parameter: TypeAlias = float | FloatArray
"""A fitted number; for the draws of a bootstrap, an array of shape [draws, 1], which broadcasts against N and V."""
_BISECTIONS = 60
"""Halvings of a range of log V, after which it is as narrow as rounding allows."""


FormName: TypeAlias = Literal["product", "additive", "log-linear"]


class ScalingLaw(Protocol):
    """A fitted law. ``N`` is the LLM's size in billions of parameters, ``V`` the number of visual tokens."""

    form: ClassVar[FormName]
    """Name of the functional form."""

    @property
    def alpha(self) -> Parameter:
        """How fast the error falls with N: an exponent, or the slope of a logarithm."""
        ...

    @property
    def beta(self) -> Parameter:
        """How fast the error falls with V."""
        ...

    @property
    def coefficients(self) -> dict[str, Parameter]:
        """What alpha and beta stand beside, by name, without the floor."""
        ...

    @property
    def floor(self) -> Parameter | None:
        """The error that no size and no number of tokens removes; None where the form has none."""
        ...

    @property
    def parameters(self) -> dict[str, Parameter]:
        """All fitted numbers by name, in the order of the formula."""
        ...

    def formula(self) -> str:
        """The right side of ``error = ...`` with its numbers, to three digits."""
        ...

    def predict(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        """Error (1 - mean score) at every pair of ``N`` and ``V``, which broadcast against each other."""
        ...

    def ratio(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        """How many times faster the error falls with log N than with log V, at every pair of ``N`` and ``V``."""
        ...

    def optimal_visual_tokens(
        self, text_tokens: float, tokens: tuple[float, float], flops: float | None = None
    ) -> FloatArray | None:
        """The best V at the cost ``flops`` = 2 N (text_tokens + V) if LLMs came in every size, kept within ``tokens``.

        There the law's ``ratio`` equals (text_tokens + V) / V. None where it depends on a budget and none is given.
        """
        ...


class _ConstantRatio:
    """A law whose error answers to sizes alpha/beta times as fast as to tokens, at every size and token count."""

    alpha: Parameter
    beta: Parameter

    def ratio(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(self.alpha, self.beta) * np.ones(np.broadcast_shapes(np.shape(N), np.shape(V)))

    def optimal_visual_tokens(
        self, text_tokens: float, tokens: tuple[float, float], flops: float | None = None
    ) -> FloatArray:
        """V* = beta Q / (alpha - beta) (arXiv 2411.03312). Without text (Q = 0) the fewest tokens win, and for
        alpha <= beta the most."""
        alpha, beta = np.asarray(self.alpha), np.asarray(self.beta)
        if text_tokens == 0:
            return np.full(alpha.shape, float(tokens[0]))
        falls_faster = alpha > beta
        optimum = beta * text_tokens / np.where(falls_faster, alpha - beta, 1.0)
        return np.clip(np.where(falls_faster, optimum, tokens[1]), *tokens)


@dataclass(frozen=True)
class ProductLaw(_ConstantRatio):
    """error(N, V) = A N^-alpha V^-beta + D (arXiv 2411.03312).

    The paper writes A and B for two coefficients; only their product can be measured, and it is ``A`` here. V counts
    visual tokens only: text tokens enter the cost, not the error.
    """

    A: Parameter
    alpha: Parameter
    beta: Parameter
    D: Parameter

    form: ClassVar[FormName] = "product"

    def predict(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        N, V = np.asarray(N, dtype=np.float64), np.asarray(V, dtype=np.float64)
        return np.asarray(self.A * N**-self.alpha * V**-self.beta + self.D)

    @property
    def coefficients(self) -> dict[str, Parameter]:
        return {"A": self.A}

    @property
    def floor(self) -> Parameter:
        return self.D

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"A": self.A, "alpha": self.alpha, "beta": self.beta, "D": self.D}

    def formula(self) -> str:
        return f"{self.A:.3g} N^-{self.alpha:.3g} V^-{self.beta:.3g}" + _floor_term(self.D)


@dataclass(frozen=True)
class AdditiveLaw:
    """error(N, V) = A N^-alpha + B V^-beta + D: what size leaves undone and what tokens leave undone add up."""

    A: Parameter
    alpha: Parameter
    B: Parameter
    beta: Parameter
    D: Parameter

    form: ClassVar[FormName] = "additive"

    def predict(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        N, V = np.asarray(N, dtype=np.float64), np.asarray(V, dtype=np.float64)
        return np.asarray(self.A * N**-self.alpha + self.B * V**-self.beta + self.D)

    def ratio(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        N, V = np.asarray(N, dtype=np.float64), np.asarray(V, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(self.alpha * self.A * N**-self.alpha, self.beta * self.B * V**-self.beta)

    def optimal_visual_tokens(
        self, text_tokens: float, tokens: tuple[float, float], flops: float | None = None
    ) -> FloatArray | None:
        if flops is None:
            return None

        def gains(V: npt.ArrayLike) -> npt.NDArray[np.bool_]:
            """Whether more tokens and a smaller LLM at the same cost lower the error: below the optimum, not above."""
            V = np.asarray(V, dtype=np.float64)
            N = flops / (2e9 * (text_tokens + V))
            from_tokens, from_size = self.beta * self.B * V**-self.beta, self.alpha * self.A * N**-self.alpha
            return np.asarray(from_tokens * (text_tokens + V) > from_size * V)

        low, high = (np.full_like(gains(end), np.log(end), dtype=np.float64) for end in tokens)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            more = gains(np.exp(middle))
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        inside = np.where(gains(tokens[0]), np.exp((low + high) / 2), tokens[0])
        return np.where(gains(tokens[1]), tokens[1], inside)

    @property
    def coefficients(self) -> dict[str, Parameter]:
        return {"A": self.A, "B": self.B}

    @property
    def floor(self) -> Parameter:
        return self.D

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"A": self.A, "alpha": self.alpha, "B": self.B, "beta": self.beta, "D": self.D}

    def formula(self) -> str:
        return f"{self.A:.3g} N^-{self.alpha:.3g} + {self.B:.3g} V^-{self.beta:.3g}" + _floor_term(self.D)


@dataclass(frozen=True)
class LogLinearLaw(_ConstantRatio):
    """error(N, V) = C - alpha ln N - beta ln V: every doubling takes off the same amount.

    The form with the fewest numbers. It has no floor and, far outside the measurements, no limit at 0 either.
    """

    C: Parameter
    alpha: Parameter
    beta: Parameter

    form: ClassVar[FormName] = "log-linear"

    def predict(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        N, V = np.asarray(N, dtype=np.float64), np.asarray(V, dtype=np.float64)
        return np.asarray(self.C - self.alpha * np.log(N) - self.beta * np.log(V))

    @property
    def coefficients(self) -> dict[str, Parameter]:
        return {"C": self.C}

    @property
    def floor(self) -> None:
        return None

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"C": self.C, "alpha": self.alpha, "beta": self.beta}

    def formula(self) -> str:
        return f"{self.C:.3g} - {self.alpha:.3g} ln N - {self.beta:.3g} ln V"


def _floor_term(D: Parameter) -> str:
    return f" + {D:.3g}" if D else ""
