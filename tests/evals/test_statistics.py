"""Standard errors against closed forms and against simulated repetition of the experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from vlmkit.evals.statistics import (
    MAX_RESAMPLES,
    MIN_RESAMPLES,
    clustered_mean,
    interval,
    mean_and_stderr,
    numbered,
    paired_difference,
    recounted,
    resampled_means,
    resamples,
)


def test_bernoulli_mean_has_its_closed_form() -> None:
    mean, stderr = mean_and_stderr([1.0] * 30 + [0.0] * 70)
    assert mean == pytest.approx(0.3)
    assert stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_equal_scores_have_no_error_and_one_score_has_the_largest() -> None:
    assert mean_and_stderr([1.0, 1.0, 1.0]) == (1.0, 0.0)
    assert mean_and_stderr([1.0]) == (1.0, 0.5)
    assert mean_and_stderr([7.0], span=10.0) == (7.0, 5.0)
    assert paired_difference([1.0], [0.0]) == (1.0, 1.0), "differences lie in -1..1"


def test_no_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        mean_and_stderr([])


def test_paired_error_of_runs_that_disagree_on_one_item_in_twenty() -> None:
    base = [1.0, 0.0] * 50
    better = [1.0] * 10 + base[10:]  # right on five more of the hundred
    difference, stderr = paired_difference(better, base)
    assert difference == pytest.approx(0.05)
    assert stderr == pytest.approx(math.sqrt((0.05 - 0.05**2) * 100 / 99 / 100))


def test_paired_error_is_the_spread_of_repeated_experiments() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.random((4000, 200))  # shared by both runs: unpaired errors would be far too large
    differences = (difficulty < 0.6).mean(1) - (difficulty < 0.5).mean(1)
    _, stderr = paired_difference(difficulty[0] < 0.6, difficulty[0] < 0.5)
    assert stderr == pytest.approx(differences.std(), rel=0.2)


def test_paired_runs_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3"):
        paired_difference([0.0, 1.0], [0.0, 1.0, 1.0])


def test_clusters_of_equal_scores_count_as_one_score_each() -> None:
    scores = [1.0, 0.0, 1.0, 1.0, 0.0]
    clusters = numbered([name for name in "abcde" for _ in range(3)])
    assert clustered_mean(np.repeat(scores, 3), clusters) == pytest.approx(mean_and_stderr(scores))
    assert clustered_mean(scores, numbered(range(5))) == mean_and_stderr(scores)
    assert clustered_mean([0.0, 1.0], [0, 0]) == (0.5, 0.5), "one cluster alone says nothing"


def test_clustered_error_and_interval_are_those_of_repeated_experiments() -> None:
    """Images of one to five questions, as easy as the image: questions counted one by one would seem too certain."""
    rng = np.random.default_rng(1)
    sizes = np.tile([1, 2, 3, 4, 5], 24)
    clusters = np.repeat(np.arange(sizes.size), sizes)

    def experiment() -> np.ndarray:
        return (rng.random(clusters.size) < rng.beta(0.5, 0.5, sizes.size)[clusters]).astype(float)

    means, errors, covered = [], [], []
    for repetition in range(300):
        scores = experiment()
        mean, error = clustered_mean(scores, clusters)
        means.append(mean)
        errors.append(error)
        if repetition < 100:
            low, high = interval(resampled_means(scores, clusters, resamples(clusters)[:300]))
            covered.append(low <= 0.5 <= high)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.06)
    assert mean_and_stderr(scores)[1] < 0.75 * np.mean(errors)


def test_numbers_are_recounted_on_draws_of_whole_clusters() -> None:
    clusters = np.array([0, 1, 0, 2])
    draws = np.array([[0, 0, 2], [1, 1, 1]])
    seen: list[list[tuple[int, int]]] = []

    def count(items: Sequence[tuple[int, int]]) -> dict[str, float]:
        seen.append(sorted(items))
        return {"size": len(items)} | ({"first": 1.0} if (0, 0) in items else {})

    found = recounted(count, clusters, draws)
    assert seen == [[(0, 0), (0, 1), (2, 0), (2, 1), (3, 0)], [(1, 0), (1, 1), (1, 2)]]
    assert found["size"].tolist() == [5, 3] == [2 + 2 + 1, 3]
    assert found["first"][0] == 1 and np.isnan(found["first"][1])
    assert interval(found["first"]) == (1.0, 1.0)
    assert resampled_means([0.0, 1.0, 1.0, 0.5], clusters, draws).tolist() == [(0 + 1 + 0 + 1 + 0.5) / 5, 1.0]


def test_resamples_are_the_same_each_time_and_fewer_of_larger_sets() -> None:
    few, many = np.arange(10), np.zeros(1_000_000, dtype=np.int64)
    assert resamples(few).shape == (MAX_RESAMPLES, 10) and resamples(many).shape == (MIN_RESAMPLES, 1)
    assert (resamples(few) == resamples(few[::-1])).all() and resamples(np.arange(5_000)).shape == (200, 5_000)
