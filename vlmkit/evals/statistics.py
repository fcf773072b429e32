"""Means of bounded scores and their standard errors, for one run and for the difference of two runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Scores = Sequence[float] | np.ndarray


def mean_and_stderr(scores: Scores, span: float = 1.0) -> tuple[float, float]:
    """The mean of ``scores`` and its standard error ``s / sqrt(n)``, where ``s`` divides by n - 1.

    For scores of 0 and 1 this is ``sqrt(p (1 - p) / (n - 1))``. One score says nothing about the spread: its error is
    reported as half of ``span``, the width of the range that scores can lie in, which is the largest it can be.
    Raises ValueError where there is no score.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise ValueError("the mean of no scores is not defined")
    mean = float(values.mean())
    if values.size == 1:
        return mean, span / 2
    return mean, float(values.std(ddof=1) / np.sqrt(values.size))


def paired_difference(first: Scores, second: Scores, span: float = 1.0) -> tuple[float, float]:
    """Mean of ``first - second``, item by item, and its standard error.

    Both runs scored the same items in the same order, so what makes an item easy for both cancels: the error is that of
    the differences, smaller than the root of the summed squares of the two errors wherever the runs agree.
    ``span`` is the width of the range that scores of one run can lie in. Raises ValueError where the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"paired runs need the same items: {len(first)} and {len(second)} scores")
    return mean_and_stderr(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), 2 * span)
