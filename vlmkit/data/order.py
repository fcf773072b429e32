"""Which sample comes when, as a function of the seed and one integer: the number of samples consumed so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from hashlib import blake2b
from typing import NamedTuple, Protocol

import numpy as np

SampleKey = tuple[int, int]
"""(index into the source, epoch): together with the seed it decides a sample's caption choice and augmentation."""

MAX_PERMUTATION = 2**24
"""Samples that are permuted as a whole (128 MiB of indices); more are permuted in windows."""
WINDOW_ROWS = 2**20
"""Samples, at least, that a window holds where nothing speaks for less."""

_BLOCK_ROWS = 4096


class SampleOrder(Protocol):
    """An endless order of samples, in which any position can be looked up."""

    def slice(self, start: int, stop: int) -> Iterator[SampleKey]:
        """Keys of the samples at positions ``start`` to ``stop``."""
        ...

    def substitute(self, key: SampleKey, attempt: int) -> int:
        """Index of the sample that stands in for ``key`` if that and the substitutes before cannot be used."""
        ...


def stable_hash(*key: int) -> int:
    """A non-negative 63-bit hash of integers, the same in every process, version and machine."""
    text = ",".join(map(str, key)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def order_of(source: Sized | int, seed: int) -> SampleOrder:
    """The order of training over a source: its own ``order(seed)``, where it has one; else all of it is shuffled.

    Instead of a source, the number of its samples will do.
    """
    if isinstance(source, int):
        return shuffled(source, seed)
    own: Callable[[int], SampleOrder] | None = getattr(source, "order", None)
    return own(seed) if own else shuffled(len(source), seed)


def shuffled(num_samples: int, seed: int, shard_sizes: np.ndarray | None = None) -> SampleOrder:
    """One permutation of all samples while it fits in memory; above, windows of shards (of equal blocks, without)."""
    if num_samples <= MAX_PERMUTATION:
        return EpochOrder(num_samples, seed)
    if shard_sizes is None:
        shard_sizes = np.diff(np.append(np.arange(0, num_samples, _BLOCK_ROWS), num_samples))
    return WindowOrder(shard_sizes, seed, WINDOW_ROWS)


class EpochOrder:
    """The endless order of training samples: one fresh permutation of the source after another.

    The permutations are joined end to end, so batches may span two epochs, no sample is dropped and a source may be
    smaller than one batch.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self._latest: tuple[int, np.ndarray] | None = None

    def slice(self, start: int, stop: int) -> Iterator[SampleKey]:
        """Keys of the samples at positions ``start`` to ``stop`` of the endless order."""
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            count = min(stop - start, self.num_samples - offset)
            indices = self._permutation(epoch)[offset : offset + count]
            yield from ((index, epoch) for index in indices.tolist())
            start += count

    def substitute(self, key: SampleKey, attempt: int) -> int:
        """Any sample of the source, drawn from (seed, index, attempt)."""
        return stable_hash(self.seed, key[0], attempt) % self.num_samples

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._latest is None or self._latest[0] != epoch:
            self._latest = epoch, _generator(self.seed, epoch).permutation(self.num_samples)
        return self._latest[1]


class WindowOrder:
    """The endless order of a source of any size: in each epoch the shards are permuted, then the samples of a window.

    A window is ``shards_per_window`` shards in a row of the permuted list. Memory holds the indices of one window and
    a few integers for each shard. Each epoch has every sample once; as with ``EpochOrder``, epochs are joined end to
    end. Substitutes come from the window of the sample they replace.

    Args:
        shard_sizes: samples of each shard, int64 [S].
        seed: of all permutations.
        window_rows: samples that a window of shards of mean size has at least.
        on_window: hears, when a window begins, the numbers of its shards and then of the next window's.
    """

    def __init__(
        self,
        shard_sizes: np.ndarray,
        seed: int,
        window_rows: int,
        on_window: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self.num_samples = int(shard_sizes.sum())
        self.seed = seed
        self._sizes = shard_sizes
        self._first = np.cumsum(shard_sizes) - shard_sizes
        self._window_shards = shards_per_window(shard_sizes, window_rows)
        self._on_window = on_window
        self._plans: dict[int, _EpochPlan] = {}
        self._latest: tuple[int, int, np.ndarray] | None = None

    def slice(self, start: int, stop: int) -> Iterator[SampleKey]:
        """Keys of the samples at positions ``start`` to ``stop`` of the endless order."""
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            window, first = self._plan(epoch).window_at(offset)
            indices = self._permuted(epoch, window)[offset - first :][: stop - start]
            yield from ((index, epoch) for index in indices.tolist())
            start += len(indices)

    def substitute(self, key: SampleKey, attempt: int) -> int:
        """A sample of the same window, drawn from (seed, index, attempt)."""
        index, epoch = key
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        plan = self._plan(epoch)
        shards = plan.shards_of(int(plan.places[shard]) // self._window_shards)
        ends = np.cumsum(self._sizes[shards])
        drawn = stable_hash(self.seed, index, attempt) % int(ends[-1])
        among = int(np.searchsorted(ends, drawn, side="right"))
        return int(self._first[shards[among]] + self._sizes[shards[among]] - (ends[among] - drawn))

    def _plan(self, epoch: int) -> _EpochPlan:
        if epoch not in self._plans:
            # Two are kept, because batches and what is announced span epochs.
            self._plans = {kept: plan for kept, plan in self._plans.items() if abs(kept - epoch) == 1}
            shards = _generator(self.seed, stable_hash(epoch)).permutation(len(self._sizes))
            self._plans[epoch] = _EpochPlan.of(shards, self._sizes, self._window_shards)
        return self._plans[epoch]

    def _permuted(self, epoch: int, window: int) -> np.ndarray:
        if self._latest is None or self._latest[:2] != (epoch, window):
            shards = self._plan(epoch).shards_of(window)
            if self._on_window is not None:
                self._on_window([*shards.tolist(), *self._next_shards(epoch, window)])
            indices = np.concatenate([self._first[shard] + np.arange(self._sizes[shard]) for shard in shards])
            _generator(self.seed, stable_hash(epoch, window)).shuffle(indices)
            self._latest = epoch, window, indices
        return self._latest[2]

    def _next_shards(self, epoch: int, window: int) -> list[int]:
        following = self._plan(epoch).shards_of(window + 1)
        return (following if following.size else self._plan(epoch + 1).shards_of(0)).tolist()


class _EpochPlan(NamedTuple):
    """The permuted shards of an epoch, the place of each shard in that list, and the samples before each window."""

    shards: np.ndarray
    places: np.ndarray
    window_starts: np.ndarray
    window_shards: int

    @classmethod
    def of(cls, shards: np.ndarray, sizes: np.ndarray, window_shards: int) -> _EpochPlan:
        before = np.cumsum(sizes[shards]) - sizes[shards]
        return cls(shards, np.argsort(shards), before[::window_shards], window_shards)

    def window_at(self, offset: int) -> tuple[int, int]:
        """(number of the window at a position of the epoch, the position where it begins)."""
        window = int(np.searchsorted(self.window_starts, offset, side="right")) - 1
        return window, int(self.window_starts[window])

    def shards_of(self, window: int) -> np.ndarray:
        return self.shards[window * self.window_shards : (window + 1) * self.window_shards]


def shards_per_window(shard_sizes: np.ndarray, window_rows: int) -> int:
    """Shards that hold ``window_rows`` samples, if they are of mean size; at most all."""
    return min(len(shard_sizes), -(-window_rows * len(shard_sizes) // max(1, int(shard_sizes.sum()))))


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, stream], np.uint64)))
