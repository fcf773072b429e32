"""How an evaluation reports its progress: a callback of two numbers, shown by the display of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vlmkit.training.metrics import Progress

OnProgress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


@contextmanager
def shown(progress: Progress | None, total: int, description: str) -> Iterator[OnProgress | None]:
    """A progress display for the block, as the callback that evaluations take."""
    if progress is None:
        yield None
        return
    progress.start(total, 0, description)
    try:
        yield lambda done, _total: progress.update(done, {})
    finally:
        progress.finish()
