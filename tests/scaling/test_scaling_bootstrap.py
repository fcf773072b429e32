"""Intervals: what they cover, how they follow the noise, and which points they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from vlmkit.errors import UserError
from vlmkit.scaling.bootstrap import residual_bootstrap, size_bootstrap
from vlmkit.scaling.fit import fit_law
from vlmkit.scaling.laws import AdditiveLaw, LogLinearLaw, ProductLaw
from vlmkit.scaling.measurements import load_published

TRUTHS = [ProductLaw(0.5, 0.35, 0.12, 0.15), AdditiveLaw(0.3, 0.4, 0.25, 0.3, 0.1), LogLinearLaw(0.6, 0.04, 0.01)]


def grid(sizes=(0.5, 1.8, 4.0, 7.0, 14.0), tokens=(1, 4, 16, 36, 64, 144, 576)):
    N, V = np.meshgrid(sizes, tokens, indexing="ij")
    return N.ravel(), V.ravel().astype(float)


def noisy_fit(truth, deviation=0.002, seed=0, **axes):
    N, V = grid(**axes)
    noise = deviation * np.random.default_rng(seed).standard_normal(len(N))
    return fit_law(truth.form, N, V, truth.predict(N, V) + noise)


def published():
    rows = load_published().of("reasoning")
    return fit_law(
        "product",
        [row.llm.billions for row in rows],
        [row.visual_tokens for row in rows],
        [row.error for row in rows],
    )


def test_published_intervals():
    bootstrap = residual_bootstrap(published())
    # 12.1 to 15.5 by other code, whose residuals were corrected neither for leverage nor for their own uncertainty.
    assert bootstrap.optimal_visual_tokens(50, (1, 576)) == pytest.approx((12.1, 15.5), abs=0.4)
    low, high = bootstrap.ratio()
    assert 4.1 < low < 4.4 and 5.1 < high < 5.4
    # The optimum is a function of the ratio, and so are the ends of its interval.
    assert (50 / (high - 1), 50 / (low - 1)) == pytest.approx(bootstrap.optimal_visual_tokens(50, (1, 576)))
    by_size = size_bootstrap(published()).optimal_visual_tokens(50, (1, 576))
    assert by_size[0] < 13.5 < by_size[1]


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda law: law.form)
@pytest.mark.parametrize("draw", [residual_bootstrap, size_bootstrap])
def test_draws_are_the_same_every_time_and_centred_on_the_fit(truth, draw):
    fit = noisy_fit(truth)
    bootstrap = draw(fit, draws=200)
    again = draw(fit, draws=200)
    for name, values in bootstrap.laws.parameters.items():
        assert values.shape == (200, 1)
        np.testing.assert_array_equal(values, again.laws.parameters[name])
    assert not np.array_equal(bootstrap.laws.alpha, draw(fit, draws=200, seed=1).laws.alpha)
    N, V = [1.8, 7.0], [16, 64]
    low, high = bootstrap.predictions(N, V)
    assert (low < fit.law.predict(N, V)).all() and (fit.law.predict(N, V) < high).all()
    narrow = bootstrap.predictions(N, V, level=0.5)
    assert (low <= narrow[0]).all() and (narrow[1] <= high).all()
    intervals = bootstrap.parameters()
    assert list(intervals) == list(fit.law.parameters)
    assert all(intervals[name][0] <= value <= intervals[name][1] for name, value in fit.law.parameters.items())


def test_draws_of_a_linear_law_spread_as_theory_says():
    fit = noisy_fit(TRUTHS[2], deviation=0.01)
    N, V = grid()
    design = np.stack([np.ones(len(N)), -np.log(N), -np.log(V)], axis=1)
    freedom = len(N) - 3
    variance = fit.sum_of_squares / freedom * np.linalg.inv(design.T @ design)
    laws = residual_bootstrap(fit, draws=20_000).laws
    spread = [np.std(values) for values in laws.parameters.values()]
    # Student's t with nu degrees of freedom has the variance nu / (nu - 2).
    expected = np.sqrt(np.diag(variance) * freedom / (freedom - 2))
    np.testing.assert_allclose(spread, expected, rtol=0.04)


def test_which_choice_is_best_can_be_counted():
    laws = residual_bootstrap(noisy_fit(TRUTHS[0]), draws=100).laws
    predicted = laws.predict([7.0, 1.8, 14.0], [16, 16, 64])
    assert predicted.shape == (100, 3)
    assert (predicted.argmin(1) == 2).all()


def test_budget_of_the_additive_law():
    bootstrap = residual_bootstrap(noisy_fit(TRUTHS[1]), draws=100)
    assert bootstrap.optimal_visual_tokens(50, (1, 576)) is None
    low, high = bootstrap.optimal_visual_tokens(50, (1, 576), 5e12)
    assert low < TRUTHS[1].optimal_visual_tokens(50, (1, 576), 5e12) < high


def test_too_few_points_and_sizes_are_refused():
    N, V = np.array([1.0, 1, 1, 2, 4]), np.array([1.0, 4, 16, 4, 4])
    fit = fit_law("additive", N, V, TRUTHS[1].predict(N, V))
    with pytest.raises(UserError, match="5 points leave no deviations"):
        residual_bootstrap(fit)
    with pytest.raises(UserError, match="needs 4"):
        size_bootstrap(noisy_fit(TRUTHS[0], sizes=(1.0, 2.0, 4.0)))
    huber = fit_law("product", *grid(), TRUTHS[0].predict(*grid()), loss="huber")
    with pytest.raises(ValueError, match="least squares"):
        residual_bootstrap(huber)


@pytest.mark.slow
@pytest.mark.parametrize("truth", TRUTHS, ids=lambda law: law.form)
def test_intervals_cover_the_truth_as_often_as_they_say(truth):
    N, V = [1.8, 7.0, 14.0, 32.0], [16, 64, 36, 36]
    covered = []
    for seed in range(200):
        fit = noisy_fit(truth, seed=seed)
        assert "D" not in fit.at_bound
        bootstrap = residual_bootstrap(fit, draws=400, seed=seed)
        ratio = bootstrap.ratio()
        optimum = bootstrap.optimal_visual_tokens(50, (1, 1e4), 5e12)
        low, high = bootstrap.predictions(N, V)
        predicted = truth.predict(N, V)
        covered.append(
            [
                ratio[0] <= truth.ratio(*fit.middle) <= ratio[1],
                optimum[0] <= truth.optimal_visual_tokens(50, (1, 1e4), 5e12) <= optimum[1],
                *((low <= predicted) & (predicted <= high)),
            ]
        )
    rates = np.mean(covered, axis=0)
    print(f"{truth.form}: coverage of ratio, V*, predictions: {rates}")
    assert (rates >= 0.9).all() and (rates <= 0.98).all()
