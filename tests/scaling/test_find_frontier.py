"""The choice under a budget, its JSON and its notes."""

from __future__ import annotations

import itertools

import matplotlib
import pytest

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.scaling.frontier import find_frontier
from vlmkit.scaling.laws import ProductLaw
from vlmkit.scaling.measurements import Measurement, Measurements, SizedLLM
from vlmkit.scaling.plot import plot_frontier


def family(answer, name):
    return next(family for family in answer.families if family.family == name)


def choice(answer, name):
    best = family(answer, name).best
    return best.llm.name.removeprefix("qwen1.5-"), best.visual_tokens


def drawn(law, sizes=(1.0, 2.0, 4.0), tokens=(1, 4, 16), name="reasoning"):
    """Measurements that lie exactly on a law."""
    return tuple(
        Measurement(name, SizedLLM(f"m{n:g}", n, round(n * 1.25e9)), v, float(law.predict(n, v)))
        for n in sizes
        for v in tokens
    )


@pytest.mark.parametrize(
    ("budget", "expected"), [(5e11, ("4b", 4)), (1e12, ("7b", 16)), (2e12, ("14b", 16)), (5e12, ("14b", 64))]
)
def test_published_reasoning_choices(budget, expected):
    assert choice(find_frontier(budget=budget), "reasoning") == expected


def test_published_ocr_choice_takes_the_tokens():
    answer = find_frontier(budget=5e12)
    assert choice(answer, "ocr") == ("1.8b", 576)
    assert family(answer, "ocr").optimal_visual_tokens == 576


def test_candidates_are_all_affordable_ones_in_order():
    answer = family(find_frontier(budget=5e12), "reasoning")
    errors = [candidate.error for candidate in answer.candidates]
    assert errors == sorted(errors)
    law = answer.fit.law
    expected = {
        (f"qwen1.5-{n:g}b", v): law.A * n**-law.alpha * v**-law.beta + law.D
        for n, v in itertools.product((0.5, 1.8, 4, 7, 14), (1, 4, 16, 36, 64, 144, 576))
        if 2e9 * n * (50 + v) <= 5e12
    }
    assert {(c.llm.name, c.visual_tokens): c.error for c in answer.candidates} == pytest.approx(expected)
    assert len(answer.considered) == 35


def test_json_is_the_documented_object():
    result = find_frontier(budget=5e12).to_json(top=3)
    assert set(result) == {"budget", "text_tokens", "families"}
    assert (result["budget"], result["text_tokens"]) == (5e12, 50)
    assert list(result["families"]) == ["reasoning", "ocr"]
    for answer in result["families"].values():
        assert set(answer) == {"law", "optimal_visual_tokens", "best", "candidates", "notes"}
        assert set(answer["law"]) == {"form", "coefficients", "exponents", "floor", "max_relative_error"}
        assert answer["law"]["form"] == "product" and set(answer["law"]["exponents"]) == {"alpha", "beta"}
        assert set(answer["best"]) == {"llm", "num_params", "visual_tokens", "flops", "error"}
        assert answer["candidates"][0] == answer["best"] and len(answer["candidates"]) == 3
    best = result["families"]["reasoning"]["best"]
    assert best["num_params"] == registry.llm("14b").num_params
    assert best["flops"] == 2 * 14e9 * (50 + 64)


def test_notes_say_what_a_reader_must_know():
    notes = family(find_frontier(budget=5e12), "ocr").notes
    text = " ".join(notes)
    assert "Extrapolated in size: qwen1.5-14b (measured 500M to 7B)." in notes
    assert "left out of the fit" in text and "suspicious" in text and "bound 0" in text
    notes = " ".join(family(find_frontier(budget=5e12, llms=["4b"], tokens=[2, 1024]), "reasoning").notes)
    assert "Extrapolated in tokens: 1024 (measured 1 to 576)" not in notes  # beyond the budget: 8.6 TFLOPs
    notes = " ".join(family(find_frontier(budget=5e13, llms=["4b"], tokens=[2, 1024]), "reasoning").notes)
    assert "Extrapolated in tokens: 1024 (measured 1 to 576)" in notes and "Extrapolated in size" not in notes


def test_larger_llms_come_only_when_asked_for():
    everything = family(find_frontier(), "reasoning").candidates
    assert max(candidate.llm.billions for candidate in everything) == 14
    assert choice(find_frontier(budget=1e14, llms=["7b", "72b"]), "reasoning") == ("72b", 576)


def test_text_changes_the_cost_and_the_optimum_and_not_the_law():
    without, long = find_frontier(budget=5e12, text_tokens=0), find_frontier(budget=5e12, text_tokens=500)
    a, b = family(without, "reasoning"), family(long, "reasoning")
    assert a.fit == b.fit
    assert a.optimal_visual_tokens == 1 and b.optimal_visual_tokens == pytest.approx(135, abs=1)
    assert a.best.flops == 2e9 * a.best.llm.billions * a.best.visual_tokens


def test_budget_below_the_cheapest_names_its_cost():
    with pytest.raises(UserError, match=r"No candidate fits in 10 GFLOPs: .*qwen1.5-0.5b.* costs 51 GFLOPs"):
        find_frontier(budget=1e10)


def test_without_a_budget_the_best_at_growing_budgets():
    answer = find_frontier()
    budgets = answer.budgets()
    assert len(budgets) == 8 and budgets == sorted(budgets)
    # Rounded up, so the cheapest candidate fits in the first budget and the dearest in the last.
    assert 51e9 <= budgets[0] < 52e9 and budgets[-1] >= 2e9 * 14 * 626
    rows = answer.to_json(top=1)["families"]["reasoning"]["frontier"]
    assert [row["budget"] for row in rows] == budgets
    assert all(row["flops"] <= row["budget"] for row in rows)
    errors = [row["error"] for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert rows[-1]["llm"] == "qwen1.5-14b" and rows[-1]["visual_tokens"] == 576


def test_own_measurements_use_their_llms_and_say_their_basis():
    law = ProductLaw(0.5, 0.4, 0.2, 0.1)
    own = Measurements(drawn(law), "non-embedding", {})
    answer = find_frontier(own, budget=1e11, text_tokens=8).families[0]
    assert {candidate.llm.name for candidate in answer.considered} == {"m1", "m2", "m4"}
    assert answer.optimal_visual_tokens == pytest.approx(8, rel=1e-4)
    assert any("non-embedding" in note for note in answer.notes)
    assert answer.best.llm.num_params == round(answer.best.llm.billions * 1.25e9)


def test_a_family_that_cannot_be_fitted_is_named_and_the_others_answer():
    law = ProductLaw(0.5, 0.4, 0.2, 0.1)
    flat = ProductLaw(0.0, 1.0, 1.0, 0.25)
    answer = find_frontier(Measurements((*drawn(law), *drawn(flat, name="ocr")), "non-embedding", {}))
    assert [family.family for family in answer.families] == ["reasoning"]
    assert "nothing to fit" in answer.unfitted["ocr"]
    # Cost hardly depends on a few tokens beside much text: most budgets change nothing and are left out.
    assert len(find_frontier(Measurements(drawn(law), "non-embedding", {}), text_tokens=10_000).budgets()) < 8
    with pytest.raises(UserError, match="measure 1 more size"):
        find_frontier(Measurements(drawn(law, sizes=(1.0, 2.0)), "non-embedding", {}))


def test_impossible_candidates_are_refused():
    with pytest.raises(UserError, match="cannot be negative"):
        find_frontier(text_tokens=-1)
    with pytest.raises(UserError, match="at least 1"):
        find_frontier(tokens=[0, 4])
    with pytest.raises(UserError, match="did you mean"):
        find_frontier(llms=["qwen1.5-6b"])


def test_picture_is_written_with_its_labels(tmp_path):
    law = ProductLaw(0.5, 0.4, 0.2, 0.1)
    rows = [row for name in "abcde" for row in drawn(law, name=f"family-{name}")]
    path = tmp_path / "new" / "frontier.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_frontier(find_frontier(budget=5e12), path)
        published = path.read_text()
        plot_frontier(find_frontier(Measurements(tuple(rows), "non-embedding", {})), path)
        own = path.read_text()
    for text in (
        "best: qwen1.5-14b, 64 tokens",
        "best: qwen1.5-1.8b, 576 tokens",
        "budget 5 TFLOPs",
        "error (1 - score)",
    ):
        assert text in published
    assert "family-d" in own and "family-e" not in own and "budget" not in own
    with pytest.raises(UserError, match=r"must end in one of \.png"):
        plot_frontier(find_frontier(), tmp_path / "frontier.gif")
    assert not (tmp_path / "frontier.gif").exists()
