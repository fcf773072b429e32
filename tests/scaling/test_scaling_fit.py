"""The fit of the product law against known truths, the published figures and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize_scalar

from vlmkit.errors import UserError
from vlmkit.scaling.fit import fit_product_law
from vlmkit.scaling.frontier import optimal_visual_tokens
from vlmkit.scaling.laws import ProductLaw
from vlmkit.scaling.measurements import PUBLISHED, load_published

SIZES = [0.5, 1.8, 4.0, 7.0]
TOKENS = [1, 4, 16, 64, 256]


def grid(sizes=SIZES, tokens=TOKENS):
    N, V = np.meshgrid(sizes, tokens, indexing="ij")
    return N.ravel(), V.ravel().astype(float)


def columns(rows):
    return [row.llm.billions for row in rows], [row.visual_tokens for row in rows], [row.error for row in rows]


def test_law_is_the_papers_formula():
    law = ProductLaw(A=0.5, alpha=0.5, beta=0.25, D=0.1)
    # 0.5 / sqrt(4) / 16^(1/4) + 0.1, and the shape of the broadcast.
    np.testing.assert_allclose(law.predict([[1.0], [4.0]], [1, 16]), [[0.6, 0.35], [0.35, 0.225]])
    assert law.parameters == {"A": 0.5, "alpha": 0.5, "beta": 0.25, "D": 0.1}


@pytest.mark.parametrize(
    "truth",
    [
        ProductLaw(0.6, 0.07, 0.015, 0.1),
        ProductLaw(0.4, 0.3, 0.6, 0.25),
        ProductLaw(0.2, 0.03, 0.04, 0.0),
        ProductLaw(0.3, 1.2, 0.01, 0.4),
    ],
)
@pytest.mark.parametrize("unit", [1.0, 1e-4])
def test_noiseless_truth_is_recovered(truth, unit):
    N, V = grid()
    fit = fit_product_law(N * unit, V, truth.predict(N, V))
    expected = {**truth.parameters, "A": truth.A * unit**truth.alpha}
    assert fit.law.parameters == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert fit.max_relative_error < 1e-8
    assert ("D" in fit.at_bound) == (truth.D == 0)


def test_noisy_truth_is_recovered_within_the_noise():
    truth = ProductLaw(0.5, 0.3, 0.2, 0.15)
    N, V = grid(np.geomspace(0.5, 70, 8), np.geomspace(1, 576, 8))
    noise = 1 + 0.002 * np.random.default_rng(0).standard_normal(len(N))
    fit = fit_product_law(N, V, truth.predict(N, V) * noise)
    assert fit.law.alpha / fit.law.beta == pytest.approx(1.5, rel=0.02)
    assert pytest.approx(0.15, abs=0.02) == fit.law.D
    np.testing.assert_allclose(fit.law.predict(N, V), truth.predict(N, V), rtol=0.004)


def scipy_fit(N, V, error):
    """Multi-start bounded least squares over all four parameters at once: (sum of squares, alpha, beta)."""
    centre = np.exp(np.log(N).mean())

    def residual(p):
        return p[0] * (N / centre) ** -p[1] * V ** -p[2] + p[3] - error

    starts = [(error.mean(), a, b, d) for a in (0.05, 0.5) for b in (0.05, 0.5) for d in (0.01, 0.2)]
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": 500}
    solutions = [least_squares(residual, s, bounds=([0] * 4, [np.inf, 20, 20, 1]), **tight) for s in starts]
    best = min(solutions, key=lambda solution: solution.cost)
    return 2 * best.cost, best.x[1], best.x[2]


@pytest.mark.parametrize("seed", range(12))
def test_fit_is_the_least_squares_optimum_scipy_finds(seed):
    rng = np.random.default_rng(seed)
    sizes = np.array(SIZES)[: rng.integers(3, 5)] * 10 ** rng.uniform(-4, 1)
    N, V = grid(sizes, TOKENS[: rng.integers(3, 6)])
    x = N ** -rng.uniform(0.02, 0.8) * V ** -rng.uniform(0.005, 0.8)
    error = rng.uniform(0.2, 0.6) * x / x.max() + rng.uniform(0, 0.4) * (seed % 2)
    error *= 1 + rng.choice([0.01, 0.1]) * rng.standard_normal(len(N))
    fit = fit_product_law(N, V, error)
    squares, alpha, beta = scipy_fit(N, V, error)
    assert np.square(fit.law.predict(N, V) - error).sum() <= squares * (1 + 1e-6)
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((alpha, beta), rel=1e-3, abs=1e-4)


def test_fit_is_deterministic_and_blind_to_the_order():
    N, V, error = map(np.array, columns(load_published().of("reasoning")))
    order = np.random.default_rng(1).permutation(len(N))
    assert fit_product_law(N, V, error) == fit_product_law(N, V, error)
    shuffled = fit_product_law(N[order], V[order], error[order])
    assert shuffled.law.parameters == pytest.approx(fit_product_law(N, V, error).law.parameters, rel=1e-6)


def test_published_reasoning_table():
    fit = fit_product_law(*columns(load_published().of("reasoning")))
    law = fit.law
    # Recomputed for this project from the published scores with other code.
    assert pytest.approx(0.591, abs=5e-4) == law.A
    assert law.alpha == pytest.approx(0.0709, abs=5e-5)
    assert law.beta == pytest.approx(0.0151, abs=5e-5)
    assert law.D == 0 and fit.at_bound == ("D",)
    assert fit.max_relative_error == pytest.approx(0.013, abs=5e-4)
    assert 4.69 < law.alpha / law.beta < 4.73
    assert optimal_visual_tokens(law, 50, (1, 576)) == pytest.approx(13.5, abs=0.05)
    assert (fit.num_points, fit.sizes, fit.tokens) == (28, (0.5, 7.0), (1.0, 576.0))


def test_published_ocr_table_with_all_its_points():
    rows = np.genfromtxt(PUBLISHED / "ocr.csv", delimiter=",", skip_header=1, usecols=(2, 3, 4))
    law = fit_product_law(rows[:, 0], rows[:, 1], 1 - rows[:, 2]).law
    assert (law.alpha, law.beta) == pytest.approx((0.028, 0.039), abs=5e-4)
    assert law.alpha / law.beta == pytest.approx(0.72, abs=5e-3)


def test_error_that_does_not_fall_with_tokens_ends_on_the_bound():
    N, V = grid()
    fit = fit_product_law(N, V, 0.5 * N**-0.2 * V**0.05)
    assert fit.law.beta == 0 and "beta" in fit.at_bound
    fit = fit_product_law(N, V, 0.3 * N**0.1 * V**-0.2)
    assert fit.law.alpha == 0 and "alpha" in fit.at_bound


def test_points_without_error_are_left_out_of_the_relative_error():
    N, V = grid()
    error = ProductLaw(0.5, 0.4, 0.3, 0.0).predict(N, V)
    error[-1] = 0.0
    fit = fit_product_law(N, V, error)
    expected = np.abs(fit.law.predict(N, V) / np.where(error > 0, error, np.inf) - 1)[:-1].max()
    assert fit.max_relative_error == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sizes", "tokens", "message"),
    [
        ([1, 2], TOKENS, "only 2 LLM sizes .* measure 1 more size"),
        ([1], TOKENS, "only 1 LLM size .* measure 2 more sizes"),
        (SIZES, [1, 64], "only 2 visual token counts .* measure 1 more token count"),
    ],
)
def test_too_small_grids_are_refused(sizes, tokens, message):
    N, V = grid(sizes, tokens)
    with pytest.raises(UserError, match=message):
        fit_product_law(N, V, 0.5 * N**-0.1 * V**-0.1)


def test_sizes_and_tokens_that_vary_together_are_refused():
    N = np.array([1.0, 2, 4, 8, 16])
    with pytest.raises(UserError, match="vary together"):
        fit_product_law(N, N, 0.5 * N**-0.2)


def test_equal_errors_are_refused():
    N, V = grid()
    with pytest.raises(UserError, match="nothing to fit"):
        fit_product_law(N, V, np.full(len(N), 0.25))


@pytest.mark.parametrize("text_tokens", [10, 50, 300])
def test_closed_form_optimum_minimises_the_error_at_constant_cost(text_tokens):
    law = ProductLaw(0.6, 0.07, 0.015, 0.1)

    def error(log_v):
        V = np.exp(log_v)
        return float(law.predict(5e12 / (2e9 * (text_tokens + V)), V))

    numeric = np.exp(minimize_scalar(error, bounds=(0, np.log(1e5)), method="bounded", options={"xatol": 1e-10}).x)
    assert optimal_visual_tokens(law, text_tokens, (1, 1e5)) == pytest.approx(numeric, rel=1e-3)


def test_closed_form_optimum_at_its_ends():
    assert optimal_visual_tokens(ProductLaw(0.6, 0.07, 0.015, 0), 0, (1, 576)) == 1
    assert optimal_visual_tokens(ProductLaw(0.6, 0.03, 0.04, 0), 50, (1, 576)) == 576
    assert optimal_visual_tokens(ProductLaw(0.6, 0.07, 0.06999, 0), 50, (1, 576)) == 576
    assert optimal_visual_tokens(ProductLaw(0.6, 0.7, 0.001, 0), 50, (4, 576)) == 4
