"""How far a score can be trusted: standard errors and intervals, for one run and for the difference of two runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

Scores = Sequence[float] | np.ndarray

MAX_RESAMPLES, MIN_RESAMPLES = 1000, 100
RESAMPLED_ITEMS = 1_000_000
"""Items that the resamples of one set may hold in all: where a number is recounted on each, that takes seconds."""


def mean_and_stderr(scores: Scores, span: float = 1.0) -> tuple[float, float]:
    """The mean of ``scores`` and its standard error ``s / sqrt(n)``, where ``s`` divides by n - 1.

    For scores of 0 and 1 this is ``sqrt(p (1 - p) / (n - 1))``. One score says nothing about the spread: its error is
    reported as half of ``span``, the width of the range that scores can lie in, which is the largest it can be.
    Raises ValueError where there is no score.
    """
    values = np.asarray(scores, dtype=np.float64)
    return clustered_mean(values, np.arange(values.size), span)


def clustered_mean(scores: Scores, clusters: Sequence[Hashable] | np.ndarray, span: float = 1.0) -> tuple[float, float]:
    """The mean of ``scores`` and its standard error where those of one cluster are not independent of each other.

    With G clusters, of which g has n_g scores with the sum S_g, the error is ``sqrt(G / (G - 1) sum_g (S_g - n_g
    mean)^2) / n``: that of :func:`mean_and_stderr` where every score is a cluster of its own, and where there is one
    cluster alone, half of ``span``. Raises ValueError where there is no score.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise ValueError("the mean of no scores is not defined")
    mean = float(values.mean())
    residuals = np.bincount(numbered(clusters), values - mean)
    count = residuals.size
    if count == 1:
        return mean, span / 2
    return mean, float(np.sqrt(count / (count - 1) * np.square(residuals).sum()) / values.size)


def paired_difference(first: Scores, second: Scores, span: float = 1.0) -> tuple[float, float]:
    """Mean of ``first - second``, item by item, and its standard error.

    Both runs scored the same items in the same order, so what makes an item easy for both cancels: the error is that of
    the differences, smaller than the root of the summed squares of the two errors wherever the runs agree.
    ``span`` is the width of the range that scores of one run can lie in. Raises ValueError where the lengths differ.
    """
    if len(first) != len(second):
        raise ValueError(f"paired runs need the same items: {len(first)} and {len(second)} scores")
    return mean_and_stderr(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), 2 * span)


def numbered(clusters: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """The clusters of a sequence of items as numbers from 0, in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def resamples(clusters: np.ndarray) -> np.ndarray:
    """Draws of the bootstrap over clusters: of G of them, G with replacement, [resamples, G].

    ``clusters`` are the items' numbers. Equal clusters are drawn alike, so runs on the same items are paired draw by
    draw. There are ``MAX_RESAMPLES``, or so many that all together hold about ``RESAMPLED_ITEMS`` items, but no fewer
    than ``MIN_RESAMPLES``.
    """
    count = int(clusters.max()) + 1
    draws = min(MAX_RESAMPLES, max(MIN_RESAMPLES, RESAMPLED_ITEMS // clusters.size))
    return np.random.default_rng(0).integers(count, size=(draws, count))


def resampled_means(scores: Scores, clusters: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The mean score of each of the ``draws`` of clusters."""
    sums, sizes = np.bincount(clusters, np.asarray(scores, dtype=np.float64)), np.bincount(clusters)
    return np.array([sums[drawn].sum() / sizes[drawn].sum() for drawn in draws])


def recounted(
    count: Callable[[Sequence[tuple[int, int]]], Mapping[str, float]], clusters: np.ndarray, draws: np.ndarray
) -> dict[str, np.ndarray]:
    """Numbers that are no means, recounted on each of the ``draws`` of clusters; nan where a draw does not have one.

    ``count`` is given the items of a draw as (item, how often its cluster was drawn before): an item that was drawn
    twice stands for two different ones.
    """
    order = np.argsort(clusters, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(clusters))[:-1])
    found: dict[str, np.ndarray] = {}
    for row, drawn in enumerate(draws):
        times = dict.fromkeys(drawn.tolist(), 0)
        items: list[tuple[int, int]] = []
        for cluster in drawn.tolist():
            items += ((item, times[cluster]) for item in members[cluster].tolist())
            times[cluster] += 1
        for name, value in count(items).items():
            found.setdefault(name, np.full(len(draws), np.nan))[row] = value
    return found


def interval(replicates: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a bootstrap: its percentiles 2.5 and 97.5."""
    low, high = np.nanpercentile(replicates, (2.5, 97.5))
    return float(low), float(high)
