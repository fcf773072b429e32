"""Both linear probes on towers whose features are known in closed form."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from toy_data import ColouredSquares, MeanColour, split_of

from vlmkit.data.samples import LabelledSample
from vlmkit.errors import UserError
from vlmkit.evals.probes import linear_mae
from vlmkit.evals.probes.features import AttributeSplit, probe_splits
from vlmkit.evals.probes.few_shot import few_shot
from vlmkit.evals.probes.knn import nearest_neighbours
from vlmkit.evals.probes.linear import logistic_regression
from vlmkit.evals.probes.linear_mae import mae_linear_probe, train_heads
from vlmkit.evals.probes.result import PairedResult, Probe, ProbeResult


def probe(tower: MeanColour, train: object, test: object, batch_size: int = 256) -> list[ProbeResult]:
    (splits,) = probe_splits([tower.pooled], tower.image_size, train, test, batch_size=batch_size)
    return [logistic_regression(split) for split in splits]


def test_separable_attribute_is_read_and_an_invisible_one_is_not() -> None:
    train, test = ColouredSquares(300, seed=0), ColouredSquares(200, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colour, side = probe(MeanColour(), train, test, batch_size=64)
    assert (colour.attribute, colour.accuracy, colour.stderr, colour.num_samples) == ("colour", 1.0, 0.0, 200)
    assert colour.chance == max(np.unique(test.names, return_counts=True)[1]) / 200
    assert side.num_samples == 150  # the attribute is absent from every fourth image
    assert side.accuracy == pytest.approx(0.5, abs=4 * side.stderr)
    assert side.stderr == pytest.approx(math.sqrt(side.accuracy * (1 - side.accuracy) / 149))


def test_result_depends_on_nothing_but_data_and_weights() -> None:
    train, test = ColouredSquares(200, seed=0), ColouredSquares(100, seed=1)
    first = probe(MeanColour(), train, test, batch_size=64)
    torch.manual_seed(5)
    np.random.seed(5)
    second = probe(MeanColour(), train, test, batch_size=7)
    assert [result.correct.tolist() for result in first] == [result.correct.tolist() for result in second]


def test_pair_marks_the_ceiling_and_gives_the_paired_gain() -> None:
    train, test = ColouredSquares(300, seed=0), ColouredSquares(200, seed=1)
    seeing, blind = probe(MeanColour(), train, test)[0], probe(MeanColour(blind=True), train, test)[0]
    both_see = PairedResult(seeing, seeing)
    assert not both_see.informative and both_see.note == "ceiling"
    assert both_see.difference == (0.0, 0.0)

    pair = PairedResult(seeing, blind)
    assert pair.informative and pair.note == seeing.detail
    gain, stderr = pair.difference
    assert gain == pytest.approx(1 - blind.accuracy)
    assert stderr == pytest.approx(blind.stderr)  # the trained tower is always right: only one side varies
    assert blind.accuracy <= blind.chance + 1e-9


class FaintTint:
    """Greys of every brightness, one half of them a touch redder: a strong penalty hides the difference."""

    fingerprint = "1"
    classes = {"tint": ["grey", "red"]}  # noqa: RUF012

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.brightness, self.red = rng.integers(0, 200, size), rng.integers(2, size=size)

    def __len__(self) -> int:
        return len(self.red)

    def __getitem__(self, index: int) -> LabelledSample:
        pixels = np.full((8, 8, 3), self.brightness[index], np.uint8)
        pixels[..., 0] += np.uint8(6 * self.red[index])
        return LabelledSample(pixels, {"tint": int(self.red[index])})


def test_the_penalty_is_chosen_for_the_data() -> None:
    (tint,) = probe(MeanColour(), FaintTint(500, 0), FaintTint(200, 1))
    assert tint.accuracy > 0.95


def test_too_little_to_hold_a_part_out_is_refused() -> None:
    split = split_of(np.eye(2, dtype=np.float32), np.array([0, 1]))
    with pytest.raises(UserError, match="'kind' has fewer than two classes in the part"):
        logistic_regression(split)


def clouds(size: int, noise: float, seed: int = 0) -> AttributeSplit:
    """Three classes around the corners of a simplex, in four badly scaled dimensions."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=2 * size)
    features = (np.eye(4)[labels] + noise * rng.normal(size=(2 * size, 4))) * [1000, 1, 0.01, 1] + 5
    x, y = features.astype(np.float32), labels
    return split_of(x[:size], y[:size], x[size:], y[size:])


def test_lars_solves_a_separable_problem_whatever_the_scale_of_the_features() -> None:
    result = mae_linear_probe(clouds(600, noise=0.1))
    assert result.accuracy == 1.0
    assert float(result.detail.removeprefix("rate ").removesuffix(", edge")) in linear_mae.RATES


def test_lars_is_no_better_than_chance_on_noise() -> None:
    split = clouds(600, noise=0.1)
    shuffled = np.random.default_rng(1).permutation(split.train_y)
    result = mae_linear_probe(split_of(split.train_x, shuffled, split.test_x, split.test_y))
    assert result.accuracy == pytest.approx(1 / 3, abs=4 * result.stderr)


def test_a_rate_at_the_edge_of_the_grid_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_mae, "EPOCHS", 20)
    for rates, detail in [((1.0, 1e3), "rate 1000, edge"), ((1.0, 1e3, 1e-3), "rate 1000")]:
        monkeypatch.setattr(linear_mae, "RATES", rates)
        assert mae_linear_probe(clouds(600, noise=0.3)).detail == detail


@pytest.mark.parametrize(
    "probe_of", [logistic_regression, mae_linear_probe, partial(few_shot, shots=5), nearest_neighbours]
)
def test_nothing_is_chosen_by_the_test_labels(probe_of: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_mae, "EPOCHS", 20)
    split = clouds(300, noise=0.7)
    predicted = []
    # Whether the prediction for an image is 0, 1 or 2: three labellings of the test set spell the predictions out.
    for label in range(3):
        result = probe_of(replace(split, test_y=np.full(300, label)))
        predicted.append(result.correct)
        assert result.detail == probe_of(split).detail
    assert (np.sum(predicted, axis=0) == 1).all()
    expected = np.take_along_axis(np.stack(predicted), split.test_y[None, None], axis=0)[0]
    np.testing.assert_array_equal(probe_of(split).correct, expected)


def test_a_head_does_not_depend_on_the_rates_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_mae, "EPOCHS", 20)
    split = clouds(600, noise=0.5)
    x, y = torch.from_numpy(split.train_x).double(), torch.from_numpy(split.train_y)
    with_double = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        together = train_heads(x, y, 3, (0.1, 1.0, 10.0))
        for number, rate in enumerate((0.1, 1.0, 10.0)):
            alone = train_heads(x, y, 3, [rate])
            torch.testing.assert_close(together.weights[number], alone.weights[0], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(together.biases[number], alone.biases[0], rtol=1e-9, atol=1e-12)
    finally:
        torch.set_default_dtype(with_double)
    moved = [float((weight - together.weights[0]).detach().norm()) for weight in together.weights]
    assert moved[0] == 0 < moved[1] < moved[2]


def test_one_step_is_that_of_lars(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first update by hand: trust ratio 0.001 |w| / |g| on the weight, the plain rate on the bias."""
    monkeypatch.setattr(linear_mae, "EPOCHS", 1)
    monkeypatch.setattr(linear_mae, "WARMUP_EPOCHS", 0)
    rng = np.random.default_rng(0)
    # Features so small that the epsilon of the norm (MAE's, 1e-6) counts.
    x, y = torch.from_numpy(1e-2 * rng.normal(size=(100, 6)).astype(np.float32)), torch.arange(100) % 3
    start = linear_mae.LinearHeads(1, 6, 3)
    head = train_heads(x, y, 3, [2.0])
    rate = 2.0 * 100 / 256
    normed = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
    weight = start.weights[0].detach()
    error = (normed @ weight.T).softmax(1) - torch.eye(3)[y]
    gradient = error.T @ normed / 100
    step = 0.001 * weight.norm() / gradient.norm() * gradient
    torch.testing.assert_close(head.weights[0].detach(), weight - rate * step, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(head.biases[0].detach(), -rate * error.mean(0), rtol=1e-4, atol=1e-7)
