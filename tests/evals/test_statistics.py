"""Standard errors against closed forms and against simulated repetition of the experiment."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlmkit.evals.statistics import mean_and_stderr, paired_difference


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
