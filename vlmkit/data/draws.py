"""Random draws that are the same on every machine and release: a keyed stream that touches no global generator."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of draws determined by its key, e.g. ``Draws("scene", seed, split, index)``.

    Only ``Random.random`` is used underneath: of Python's generator, that method alone promises the same sequence in
    every release.
    """

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
        self._uniform = random.Random(int.from_bytes(digest, "big")).random

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._uniform() < probability

    def uniform(self, low: float, high: float) -> float:
        """A number of ``low`` to ``high``."""
        return low + (high - low) * self._uniform()

    def between(self, low: int, high: int) -> int:
        """An integer of ``low`` to ``high``, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, each equally likely."""
        return options[int(self._uniform() * len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different options (all of them, if there are fewer) in random order."""
        pool = list(options)
        count = min(count, len(pool))
        for position in range(count):
            other = self.between(position, len(pool) - 1)
            pool[position], pool[other] = pool[other], pool[position]
        return pool[:count]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All options in random order."""
        return self.sample(options, len(options))
