"""Weighted nearest neighbours against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from toy_data import split_of

from vlmkit.evals.probes import knn
from vlmkit.evals.probes.knn import NUM_NEIGHBOURS, TEMPERATURE, nearest_neighbours


@pytest.mark.parametrize("train_size", [300, 12])
def test_votes_are_those_of_scikit_learn(train_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_MAX_SIMILARITIES", 7 * train_size)  # several chunks, the last one short
    rng = np.random.default_rng(train_size)
    x, y = rng.normal(size=(train_size + 100, 5)), rng.integers(3, size=train_size + 100)
    x += 0.7 * np.eye(5)[y]
    x = x.astype(np.float32)
    split = split_of(x[:train_size], y[:train_size], x[train_size:], y[train_size:])
    reference = KNeighborsClassifier(
        min(NUM_NEIGHBOURS, train_size), metric="cosine", weights=lambda distance: np.exp((1 - distance) / TEMPERATURE)
    ).fit(split.train_x.astype(np.float64), split.train_y)
    expected = reference.predict(split.test_x.astype(np.float64)) == split.test_y
    result = nearest_neighbours(split)
    assert result.correct.tolist() == [expected.astype(float).tolist()]
    assert 0 < result.accuracy < 1


def test_the_length_of_a_feature_does_not_count() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 4)).astype(np.float32), rng.integers(2, size=100)
    lengths = rng.uniform(0.01, 100, (100, 1)).astype(np.float32)
    assert nearest_neighbours(split_of(x, y)).accuracy == nearest_neighbours(split_of(x * lengths, y)).accuracy
