"""Several sources as one, drawn from in proportion to weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Generic, TypeVar

import numpy as np

from vlmkit.contracts import Source
from vlmkit.data.order import SampleKey, SampleOrder, order_of, stable_hash
from vlmkit.data.samples import CaptionSample, CaptionSource
from vlmkit.errors import UserError

SampleT = TypeVar("SampleT")

BLOCK = 2**16
"""Draws after which the parts have had their exact shares."""


class Mixture(Generic[SampleT]):
    """The samples of several sources, one source after another; ``order`` mixes them by weight.

    An epoch of a mixture is as many draws as the parts have samples together. It does not hold each sample once: a
    part of share w (its weight over the sum of weights) and n samples is passed w * len(mixture) / n times, in its own
    order, one epoch of that part after another. The epoch in a sample's key is that of its part, so each pass draws
    other captions and crops. Shares are rounded to 1 in ``BLOCK``, and no part gets less than that.

    ``samples_fingerprint`` is that of the samples by their indices, whatever the weights.

    Raises UserError if there are no parts, or a weight is not a positive number.
    """

    def __init__(self, parts: Sequence[Source[SampleT]], weights: Sequence[float]) -> None:
        if not parts or not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise UserError("A mixture needs a positive weight for each of one or more sources.")
        self._parts = list(parts)
        self._starts = np.cumsum([0] + [len(part) for part in parts])
        self._draws = apportion(weights, BLOCK)
        samples = [part.fingerprint for part in parts]
        self.samples_fingerprint = sha256(json.dumps(samples).encode()).hexdigest()
        self.fingerprint = sha256(json.dumps([samples, self._draws.tolist()]).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> SampleT:
        number, row = self._find(index)
        return self._parts[number][row]

    def order(self, seed: int) -> SampleOrder:
        """The endless order of draws."""
        orders = [order_of(part, stable_hash(seed, number)) for number, part in enumerate(self._parts)]
        return MixtureOrder(orders, self._starts[:-1], self._draws, seed)

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])


class CaptionMixture(Mixture[CaptionSample]):
    """A mixture of sources of captions."""

    def __init__(self, parts: Sequence[CaptionSource], weights: Sequence[float]) -> None:
        super().__init__(parts, weights)
        self._captions = [part.captions_only for part in parts]

    def captions_only(self, index: int) -> tuple[str, ...]:
        """The captions of a sample, whose image is not read."""
        number, row = self._find(index)
        return self._captions[number](row)


class MixtureOrder:
    """The endless order of a mixture: blocks of ``BLOCK`` draws, each with the same number from each part, shuffled.

    The position in a part's own order follows from the number of whole blocks and the draws of the present one, so
    that any position of the mixture can be looked up.
    """

    def __init__(self, parts: Sequence[SampleOrder], starts: np.ndarray, draws: np.ndarray, seed: int) -> None:
        self._parts = parts
        self._starts = starts
        self._draws = draws
        self._seed = seed
        self._latest: tuple[int, np.ndarray] | None = None

    def slice(self, start: int, stop: int) -> Iterator[SampleKey]:
        """Keys of the samples at positions ``start`` to ``stop`` of the endless order."""
        while start < stop:
            block, offset = divmod(start, BLOCK)
            pattern = self._pattern(block)
            chosen = pattern[offset:][: stop - start]
            begin = block * self._draws + np.bincount(pattern[:offset], minlength=len(self._parts))
            end = begin + np.bincount(chosen, minlength=len(self._parts))
            keys = [part.slice(*span) for part, *span in zip(self._parts, begin.tolist(), end.tolist(), strict=True)]
            for number in chosen.tolist():
                index, epoch = next(keys[number])
                yield int(self._starts[number]) + index, epoch
            start += len(chosen)

    def substitute(self, key: SampleKey, attempt: int) -> int:
        """A sample of the same part."""
        index, epoch = key
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        start = int(self._starts[number])
        return start + self._parts[number].substitute((index - start, epoch), attempt)

    def _pattern(self, block: int) -> np.ndarray:
        """The part of each draw of a block, int64 [BLOCK]."""
        if self._latest is None or self._latest[0] != block:
            pattern = np.repeat(np.arange(len(self._draws)), self._draws)
            key = np.array([self._seed % 2**64, stable_hash(block)], np.uint64)
            np.random.Generator(np.random.Philox(key=key)).shuffle(pattern)
            self._latest = block, pattern
        return self._latest[1]


def apportion(weights: Sequence[float], total: int) -> np.ndarray:
    """Whole numbers, at least 1 each, that add up to ``total`` in proportion to ``weights`` (largest remainders)."""
    exact = np.array(weights) / math.fsum(weights) * (total - len(weights))
    whole = np.floor(exact).astype(np.int64)
    largest = np.argsort(whole - exact, kind="stable")[: total - len(weights) - int(whole.sum())]
    whole[largest] += 1
    return whole + 1
