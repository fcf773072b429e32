"""Few-shot ridge regression against the normal equations."""

from __future__ import annotations

import numpy as np
import pytest
from toy_data import split_of

from vlmkit.evals.probes.few_shot import L2, NUM_DRAWS, draw_shots, few_shot

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("shots", "width"), [(1, 12), (10, 5)])
def test_predictions_solve_the_normal_equations(shots: int, width: int) -> None:
    labels = RNG.integers(3, size=120)
    features = (RNG.normal(3, 7, (120, width)) + 8 * np.eye(width)[labels]).astype(np.float32)
    split = split_of(features[:60], labels[:60], features[60:], labels[60:])
    expected = []
    for seed in range(NUM_DRAWS):
        rows = draw_shots(split.train_y, shots, seed)
        x, targets = split.train_x[rows].astype(np.float64), np.eye(3)[split.train_y[rows]]
        mean, deviation = x.mean(axis=0), x.std(axis=0)
        x = (x - mean) / deviation
        gram = x.T @ x + L2 * max(x.shape) * np.eye(width)
        weights = np.linalg.solve(gram, x.T @ (targets - targets.mean(axis=0)))
        scores = (split.test_x - mean) / deviation @ weights + targets.mean(axis=0)
        expected.append(scores.argmax(axis=1) == split.test_y)
    result = few_shot(split, shots)
    np.testing.assert_array_equal(result.correct, np.array(expected, dtype=float))
    assert 0 < result.accuracy < 1


def test_a_feature_that_does_not_vary_does_no_harm() -> None:
    labels = RNG.integers(2, size=60)
    features = (np.eye(4)[labels] + 0.1 * RNG.normal(size=(60, 4))).astype(np.float32)
    features[:, 3] = 0.1
    assert few_shot(split_of(features, labels), 5).accuracy == 1.0


def test_shots_are_of_every_class_and_the_same_for_every_tower() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2] * 3)
    rows = draw_shots(labels, 5, seed=1)
    assert np.bincount(labels[rows]).tolist() == [5, 5, 3] and len(set(rows)) == 13
    np.testing.assert_array_equal(rows, draw_shots(labels, 5, seed=1))
    assert set(rows) != set(draw_shots(labels, 5, seed=2))


def test_more_shots_of_noisy_clouds_do_better_and_the_spread_is_over_draws() -> None:
    labels = RNG.integers(4, size=800)
    features = (np.eye(16)[labels] + 0.4 * RNG.normal(size=(800, 16))).astype(np.float32)
    split = split_of(features[:400], labels[:400], features[400:], labels[400:])
    one, ten = few_shot(split, 1), few_shot(split, 10)
    assert 0.3 < one.accuracy < ten.accuracy and ten.accuracy > 0.7
    assert one.correct.shape == (NUM_DRAWS, 400)
    assert one.spread == pytest.approx(np.std(one.correct.mean(axis=1), ddof=1)) and one.spread > 0
    of_images = one.correct.mean(axis=0).std(ddof=1) / 20
    assert one.stderr == pytest.approx(np.hypot(of_images, one.spread / np.sqrt(NUM_DRAWS)))
