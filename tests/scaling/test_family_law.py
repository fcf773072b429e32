"""Laws of families and their mixes, and what is doubted about them."""

from __future__ import annotations

import numpy as np
import pytest

from vlmkit.errors import UserError
from vlmkit.scaling.family_law import DRAWS, Mix, fit_family
from vlmkit.scaling.laws import AdditiveLaw, ProductLaw
from vlmkit.scaling.measurements import Measurement, SizedLLM, load_published


def drawn(law, name="reasoning", noise=0.0, stderr=None, seed=0):
    random = np.random.default_rng(seed)
    return [
        Measurement(name, SizedLLM(f"m{n:g}", n, round(n * 1e9)), v, float(law.predict(n, v)) + e, stderr)
        for (n, v), e in zip(
            [(n, v) for n in (1.0, 2.0, 4.0, 8.0) for v in (1, 4, 16, 64)], random.normal(0, noise, 16), strict=True
        )
    ]


@pytest.fixture(scope="module")
def published():
    tables = load_published()
    return {name: fit_family(name, tables.of(name)) for name in tables.families}


def test_published_tables_give_the_papers_figures(published):
    """Recomputed from the printed scores with other code: alpha/beta 4.70, V* 13.5 at Q = 50 (12.1 to 15.5)."""
    reasoning = published["reasoning"]
    best = reasoning.optimum(50, (1, 576), None)
    assert best.visual_tokens == pytest.approx(13.5, abs=0.05) and best.flops is None
    assert best.interval == pytest.approx((12.1, 15.5), abs=0.6)
    assert reasoning.left_out["size"].largest == pytest.approx(0.018, abs=0.001)
    doubts = " ".join(reasoning.doubts)
    assert "D is on its bound 0" in doubts and "their ratio is" in doubts
    assert published["ocr"].optimum(50, (1, 576), None).interval == (576, 576)


def test_auto_takes_the_form_that_made_the_points():
    rows = drawn(AdditiveLaw(0.2, 1.0, 0.3, 1.0, 0.1), noise=1e-5)
    family = fit_family("f", rows, "auto")
    assert family.fit.law.form == "additive"
    assert "additive form was chosen by AICc" in " ".join(family.doubts)
    assert family.optimum(50, (1, 64), None) is None and family.optimum(50, (1, 64), 1e12).flops == 1e12


def test_a_form_that_describes_nothing_says_so(published):
    sizes = [SizedLLM(f"own-{i}", 2.0**i, 1) for i in range(4)]
    steps = [Measurement("f", llm, count, 0.02 if count > 32 else 0.8) for llm in sizes for count in (1, 4, 16, 64)]
    family = fit_family("f", steps)
    assert not family.fit.describes and published["reasoning"].fit.describes
    assert "does not describe these measurements" in family.doubts[0]


def test_weights_need_a_standard_error_at_every_point():
    rows = drawn(ProductLaw(0.5, 0.3, 0.2, 0.1), noise=0.01, stderr=0.01)
    assert fit_family("f", rows).weighted
    rows[0] = Measurement("reasoning", rows[0].llm, rows[0].visual_tokens, rows[0].error)
    assert not fit_family("f", rows).weighted


def test_huber_is_fitted_beside_least_squares():
    rows = drawn(ProductLaw(0.5, 0.3, 0.2, 0.1), noise=0.002)
    plain, checked = fit_family("f", rows), fit_family("f", rows, loss="huber")
    assert plain.robust is None and checked.robust.loss == "huber" and checked.fit.law == plain.fit.law


def test_a_mix_is_the_weighted_mean_of_its_families(published):
    parts = ((published["reasoning"], 0.7), (published["ocr"], 0.3))
    mix = Mix("mix", parts)
    N, V = np.array([1.0, 9.0]), np.array([3.0, 100.0])
    expected = 0.7 * parts[0][0].predict(N, V) + 0.3 * parts[1][0].predict(N, V)
    assert mix.predict(N, V) == pytest.approx(expected)
    assert mix.draws(N, V).shape == (DRAWS, 2) and np.median(mix.draws(N, V), 0) == pytest.approx(expected, rel=0.01)
    # The OCR table lacks one of the 28 cells.
    assert len(mix.rows) == 27 and mix.counts == [1, 4, 16, 36, 64, 144, 576]
    # By the two laws themselves, over every whole number of tokens.
    tokens = np.arange(1.0, 577)
    errors = mix.predict(1e12 / (2e9 * (50 + tokens)), tokens)
    best = mix.optimum(50, (1, 576), 1e12)
    assert best.visual_tokens == pytest.approx(tokens[errors.argmin()], rel=0.03)
    assert best.interval[0] <= best.visual_tokens <= best.interval[1]
    assert mix.optimum(50, (1, 576), None) is None


def test_draws_of_families_are_independent_of_each_other_and_of_their_order(published):
    tables = load_published()
    again = fit_family("ocr", tables.of("ocr"))
    N, V = np.array([2.0]), np.array([16.0])
    assert again.fit.law == published["ocr"].fit.law
    assert (again.draws(N, V) == published["ocr"].draws(N, V)).all()
    twin = fit_family("twin", tables.of("ocr"))
    assert abs(np.corrcoef(again.draws(N, V)[:, 0], twin.draws(N, V)[:, 0])[0, 1]) < 0.2


def test_a_law_without_spare_points_has_no_interval(monkeypatch):
    def refuse(*_, **__):
        raise UserError("5 points leave no deviations from a law of 5 numbers")

    monkeypatch.setattr("vlmkit.scaling.family_law.residual_bootstrap", refuse)
    family = fit_family("f", drawn(ProductLaw(0.5, 0.3, 0.2, 0.1), noise=0.01))
    assert family.bootstrap is None and "too few points for intervals" in " ".join(family.doubts)
    assert family.draws(np.array([1.0]), np.array([1.0])) is None
    assert family.optimum(50, (1, 64), None).interval is None
    assert Mix("mix", ((family, 1.0),)).draws(np.array([1.0]), np.array([1.0])) is None
