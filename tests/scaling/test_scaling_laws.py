"""The laws by hand, and their best number of visual tokens against a numeric search at constant cost."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from vlmkit.scaling.laws import AdditiveLaw, LogLinearLaw, ProductLaw

LAWS = [
    ProductLaw(0.6, 0.07, 0.015, 0.1),
    AdditiveLaw(0.4, 0.1, 0.2, 0.05, 0.1),
    LogLinearLaw(0.6, 0.04, 0.01),
]


def test_laws_are_their_formulas():
    N, V = [[1.0], [4.0]], [1, 16]
    # 0.5 / sqrt(4) / 16^(1/4) + 0.1, and the shape of the broadcast.
    np.testing.assert_allclose(ProductLaw(0.5, 0.5, 0.25, 0.1).predict(N, V), [[0.6, 0.35], [0.35, 0.225]])
    np.testing.assert_allclose(AdditiveLaw(0.5, 0.5, 0.2, 0.25, 0.1).predict(N, V), [[0.8, 0.7], [0.55, 0.45]])
    expected = [[0.7, 0.7 - 0.05 * np.log(16)], [0.7 - 0.1 * np.log(4), 0.7 - 0.2 * np.log(4)]]
    np.testing.assert_allclose(LogLinearLaw(0.7, 0.1, 0.05).predict(N, V), expected)


def test_parameters_name_every_number_and_formulas_print_them():
    assert ProductLaw(0.5, 0.4, 0.3, 0.1).parameters == {"A": 0.5, "alpha": 0.4, "beta": 0.3, "D": 0.1}
    for law in LAWS:
        assert type(law)(**law.parameters) == law
        floor = {} if law.floor is None else {"D": law.floor}
        assert {**law.coefficients, "alpha": law.alpha, "beta": law.beta, **floor} == law.parameters
    assert ProductLaw(0.5912, 0.07, 0.015, 0.1).formula() == "0.591 N^-0.07 V^-0.015 + 0.1"
    assert ProductLaw(0.5912, 0.07, 0.015, 0.0).formula() == "0.591 N^-0.07 V^-0.015"
    assert LAWS[1].formula() == "0.4 N^-0.1 + 0.2 V^-0.05 + 0.1"
    assert LAWS[2].formula() == "0.6 - 0.04 ln N - 0.01 ln V"


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.form)
def test_ratio_is_that_of_the_slopes(law):
    N, V, h = np.array([0.5, 7.0]), np.array([4.0, 100.0]), 1e-6
    along_N = law.predict(N * np.exp(h), V) - law.predict(N * np.exp(-h), V)
    along_V = law.predict(N, V * np.exp(h)) - law.predict(N, V * np.exp(-h))
    np.testing.assert_allclose(law.ratio(N, V), along_N / along_V, rtol=1e-5)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.form)
@pytest.mark.parametrize("text_tokens", [10, 50, 300])
def test_optimum_minimises_the_error_at_constant_cost(law, text_tokens):
    def error(log_v):
        V = np.exp(log_v)
        return float(law.predict(5e12 / (2e9 * (text_tokens + V)), V))

    numeric = np.exp(minimize_scalar(error, bounds=(0, np.log(1e5)), method="bounded", options={"xatol": 1e-10}).x)
    assert law.optimal_visual_tokens(text_tokens, (1, 1e5), 5e12) == pytest.approx(numeric, rel=1e-3)
    if law.form != "additive":
        assert law.optimal_visual_tokens(text_tokens, (1, 1e5)) == pytest.approx(numeric, rel=1e-3)


def test_optimum_at_its_ends():
    assert ProductLaw(0.6, 0.07, 0.015, 0).optimal_visual_tokens(0, (1, 576)) == 1
    assert ProductLaw(0.6, 0.03, 0.04, 0).optimal_visual_tokens(50, (1, 576)) == 576
    assert ProductLaw(0.6, 0.07, 0.06999, 0).optimal_visual_tokens(50, (1, 576)) == 576
    assert ProductLaw(0.6, 0.7, 0.001, 0).optimal_visual_tokens(50, (4, 576)) == 4
    assert LogLinearLaw(0.6, 0.03, 0.04).optimal_visual_tokens(50, (1, 576)) == 576
    additive = AdditiveLaw(0.4, 0.1, 0.2, 0.05, 0.1)
    assert additive.optimal_visual_tokens(50, (1, 576)) is None
    assert additive.optimal_visual_tokens(50, (64, 576), 1e12) == 64
    assert additive.optimal_visual_tokens(50, (1, 4), 5e12) == 4
    assert AdditiveLaw(0.4, 0.1, 0.0, 0.05, 0.1).optimal_visual_tokens(50, (1, 576), 5e12) == 1


def test_numbers_of_many_draws_broadcast():
    draws = AdditiveLaw(*(np.array([[0.4], [0.5]]) * scale for scale in (1, 0.25, 0.5, 0.1, 0.2)))
    each = [AdditiveLaw(*(float(value[i, 0]) for value in draws.parameters.values())) for i in range(2)]
    N, V = [1.0, 2.0, 4.0], [1.0, 16.0, 64.0]
    np.testing.assert_allclose(draws.predict(N, V), [law.predict(N, V) for law in each])
    optima = draws.optimal_visual_tokens(50, (1, 576), 5e12)
    np.testing.assert_allclose(optima, [[law.optimal_visual_tokens(50, (1, 576), 5e12)] for law in each])
