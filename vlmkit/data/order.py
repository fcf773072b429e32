"""Which sample comes when, as a function of the seed and one integer: the number of samples consumed so far."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import numpy as np

SampleKey = tuple[int, int]
"""(index into the source, epoch): together with the seed it decides a sample's caption choice and augmentation."""


def stable_hash(*key: int) -> int:
    """A non-negative 63-bit hash of integers, the same in every process, version and machine."""
    text = ",".join(map(str, key)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


@lru_cache(maxsize=2)
def _permutation(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(num_samples)


class EpochOrder:
    """The endless order of training samples: one fresh permutation of the source after another.

    The permutations are joined end to end, so batches may span two epochs, no sample is dropped and a source may be
    smaller than one batch.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed

    def slice(self, start: int, stop: int) -> Iterator[SampleKey]:
        """Keys of the samples at positions ``start`` to ``stop`` of the endless order."""
        while start < stop:
            epoch, offset = divmod(start, self.num_samples)
            count = min(stop - start, self.num_samples - offset)
            indices = _permutation(self.num_samples, self.seed, epoch)[offset : offset + count]
            yield from ((index, epoch) for index in indices.tolist())
            start += count
