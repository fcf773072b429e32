"""How the error of a vision-language model depends on the size of its LLM and the number of its visual tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]


class ScalingLaw(Protocol):
    """A fitted law. ``N`` is the LLM's size in billions of parameters, ``V`` the number of visual tokens."""

    form: str
    """Name of the functional form."""

    def predict(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        """Error (1 - mean score) at every pair of ``N`` and ``V``, which broadcast against each other."""
        ...

    @property
    def parameters(self) -> dict[str, float]:
        """The fitted numbers by name."""
        ...


@dataclass(frozen=True)
class ProductLaw:
    """error(N, V) = A N^-alpha V^-beta + D (arXiv 2411.03312).

    The paper writes A and B for two coefficients; only their product can be measured, and it is ``A`` here. V counts
    visual tokens only: text tokens enter the cost, not the error.
    """

    A: float
    alpha: float
    beta: float
    D: float

    form = "product"

    def predict(self, N: npt.ArrayLike, V: npt.ArrayLike) -> FloatArray:
        N, V = np.asarray(N, dtype=np.float64), np.asarray(V, dtype=np.float64)
        return np.asarray(self.A * N**-self.alpha * V**-self.beta + self.D)

    @property
    def parameters(self) -> dict[str, float]:
        return {"A": self.A, "alpha": self.alpha, "beta": self.beta, "D": self.D}
