"""The picture of the answers."""

from __future__ import annotations

import matplotlib
import pytest

from vlmkit.errors import UserError
from vlmkit.scaling.budgets import parse_budgets
from vlmkit.scaling.candidates import Pricing
from vlmkit.scaling.frontier import Question, find_frontier
from vlmkit.scaling.laws import ProductLaw
from vlmkit.scaling.measurements import Measurement, Measurements, SizedLLM
from vlmkit.scaling.plot import plot_frontier

pytestmark = pytest.mark.usefixtures("laws_fitted_once")


def text_of(path, question, measurements=None):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_frontier(find_frontier(measurements, question), path)
    return path.read_text()


def test_picture_says_what_was_chosen(tmp_path):
    text = text_of(tmp_path / "new" / "f.svg", Question(Pricing(parse_budgets(["5e12"]))))
    for label in (
        "reasoning: qwen1.5-14b, 64 tokens",
        "ocr: qwen1.5-1.8b, 576 tokens",
        "budget 5 TFLOPs",
        "error (1 - score)",
        "qwen1.5-7b (measured)",
        "qwen1.5-14b (predicted)",
        "law within 1.3% of every point",
    ):
        assert label in text, label


def test_every_kind_of_question_has_its_picture(tmp_path):
    target = Question(Pricing(cost="memory"), target_error={"reasoning": 0.5})
    assert "error to reach: 0.5" in text_of(tmp_path / "a.svg", target)
    every = Question(Pricing(parse_budgets(["2e12"])), continuous=True)
    text = text_of(tmp_path / "b.svg", every)
    assert "every size" in text and "predicted)" not in text
    assert "budget" not in text_of(tmp_path / "c.svg", Question())


def test_own_measurements_of_many_families_fill_four_panels(tmp_path):
    law = ProductLaw(0.5, 0.4, 0.2, 0.1)
    rows = tuple(
        Measurement(f"family-{name}", SizedLLM(f"m{n:g}", n, round(n * 1e9)), v, float(law.predict(n, v)))
        for name in "abcde"
        for n in (1.0, 2.0, 4.0)
        for v in (1, 4, 16)
    )
    text = text_of(tmp_path / "f.svg", Question(), Measurements(rows, "non-embedding", {}))
    assert "family-d" in text and "family-e" not in text


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"must end in one of \.png"):
        plot_frontier(find_frontier(), tmp_path / "frontier.gif")
    assert not (tmp_path / "frontier.gif").exists()
