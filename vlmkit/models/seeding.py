"""Initial weights that depend on a seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights on the CPU from ``seed``, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the CUDA generators, which are not restored.
        torch.default_generator.manual_seed(seed)
        yield
