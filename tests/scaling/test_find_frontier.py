"""From measurements and a question to answers for families and mixes."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.scaling.budgets import parse_budgets
from vlmkit.scaling.candidates import Pricing
from vlmkit.scaling.frontier import Question, find_frontier
from vlmkit.scaling.laws import ProductLaw
from vlmkit.scaling.measurements import Measurement, Measurements, SizedLLM
from vlmkit.scaling.workload import Workload

pytestmark = pytest.mark.usefixtures("laws_fitted_once")
LAW = ProductLaw(0.5, 0.4, 0.2, 0.1)


def ask(*budgets, measurements=None, cost=None, text_tokens=50, law="product", loss="squared", **question):
    pricing = Pricing(parse_budgets(budgets), cost, Workload(text_tokens))
    return find_frontier(measurements, Question(pricing, **question), law=law, loss=loss)


def named(frontier, name):
    return next(answer for answer in frontier.answers if answer.name == name)


def best(frontier, name):
    choice = named(frontier, name).best
    return choice.llm.name.removeprefix("qwen1.5-"), choice.visual_tokens


def drawn(law, sizes=(1.0, 2.0, 4.0), tokens=(1, 4, 16), name="reasoning", compressor=None):
    """Measurements that lie exactly on a law."""
    return tuple(
        Measurement(name, SizedLLM(f"m{n:g}", n, round(n * 1.25e9)), v, float(law.predict(n, v)), compressor=compressor)
        for n in sizes
        for v in tokens
    )


def own(*rows):
    return Measurements(rows, "non-embedding", {})


@pytest.mark.parametrize(
    ("cost", "budget", "reasoning", "ocr"),
    [
        ("llm", "5e11", ("4b", 4), ("1.8b", 64)),
        ("llm", "1e12", ("7b", 16), ("0.5b", 576)),
        ("llm", "2e12", ("14b", 16), ("4b", 144)),
        ("llm", "5e12", ("14b", 64), ("1.8b", 576)),
        ("full", "5e11", ("1.8b", 4), ("0.5b", 144)),
        ("full", "1e12", ("4b", 36), ("0.5b", 576)),
        ("full", "2e12", ("14b", 4), ("1.8b", 576)),
        ("full", "5e12", ("14b", 64), ("4b", 576)),
    ],
)
def test_published_choices_of_the_documentation(cost, budget, reasoning, ocr):
    frontier = ask(budget, cost=cost)
    assert best(frontier, "reasoning") == reasoning and best(frontier, "ocr") == ocr


def test_choices_are_all_affordable_ones_in_order():
    answer = named(ask("5e12"), "reasoning")
    errors = [choice.error for choice in answer.choices]
    assert errors == sorted(errors)
    law = answer.law.fit.law
    expected = {
        (f"qwen1.5-{n:g}b", v): law.A * n**-law.alpha * v**-law.beta + law.D
        for n, v in itertools.product((0.5, 1.8, 4, 7, 14), (1, 4, 16, 36, 64, 144, 576))
        if 2e9 * n * (50 + v) <= 5e12
    }
    assert {(c.llm.name, c.visual_tokens): c.error for c in answer.choices} == pytest.approx(expected)
    assert len(answer.considered) == 35


def test_json_holds_the_answer_and_how_far_to_trust_it():
    result = json.loads(json.dumps(ask("5e12", mix={"reasoning": 7, "ocr": 3}).to_json(top=3)))
    assert set(result) == {"budgets", "cost", "workload", "basis", "answers", "unanswered"}
    assert result["budgets"] == {"FLOPs": 5e12} and result["workload"]["text_tokens"] == 50
    assert list(result["answers"]) == ["reasoning", "ocr", "mix"]
    reasoning = result["answers"]["reasoning"]
    assert reasoning["law"]["form"] == "product" and reasoning["law"]["at_bound"] == ["D"]
    assert set(reasoning["law"]["parameters"]) == set(reasoning["law"]["intervals"]) == {"A", "alpha", "beta", "D"}
    assert reasoning["law"]["left_out"]["size"] < 0.019
    assert reasoning["choices"][0] == reasoning["best"] and len(reasoning["choices"]) == 3
    low, high = reasoning["best"]["interval"]
    assert low < reasoning["best"]["error"] < high
    assert reasoning["best"]["num_params"] == registry.llm("14b").num_params
    assert reasoning["best"]["costs"] == {"llm": 2 * 14e9 * (50 + 64)}
    mix = result["answers"]["mix"]["best"]
    by_family = [
        next(c for c in result["answers"][name]["choices"] if (c["llm"], c["visual_tokens"]) == ("qwen1.5-14b", 64))
        for name in ("reasoning", "ocr")
    ]
    assert (mix["llm"], mix["visual_tokens"]) == ("qwen1.5-14b", 64)
    assert mix["error"] == pytest.approx(0.7 * by_family[0]["error"] + 0.3 * by_family[1]["error"])


def test_json_of_a_ratio_to_nothing_is_json():
    # More tokens do not help: beta is 0 and the ratio infinite.
    rising = [replace(row, error=row.error + 0.01 * row.visual_tokens) for row in drawn(ProductLaw(0.5, 0.4, 0.0, 0.1))]
    found = ask("1e13", measurements=own(*rising)).to_json(top=1)
    assert found["answers"]["reasoning"]["law"]["ratio"] is None
    json.dumps(found, allow_nan=False)


def test_notes_tell_of_published_cells_extrapolation_and_ties():
    notes = named(ask("5e12"), "ocr").notes
    text = " ".join(notes)
    assert "* Extrapolated in size: qwen1.5-14b (measured 500M to 7B)." in notes
    assert "left out of the fit" in text and "suspicious" in text and "treat them as equal" in text
    notes = " ".join(named(ask("5e13", llms=["4b"], tokens=[2, 1024]), "reasoning").notes)
    assert "Extrapolated in tokens: 1024 (measured 1 to 576)" in notes and "Extrapolated in size" not in notes


def test_huber_and_auto_say_what_they_change():
    text = " ".join(named(ask("5e12", loss="huber"), "reasoning").notes)
    assert "By Huber's loss" in text and "alpha/beta 4.5" in text and "the same best choice" in text
    assert named(ask("5e12", law="auto"), "reasoning").law.fit.law.form == "log-linear"


def test_larger_llms_come_only_when_asked_for():
    everything = named(ask(), "reasoning").choices
    assert max(choice.llm.billions for choice in everything) == 14
    assert best(ask("1e14", llms=["7b", "72b"]), "reasoning") == ("72b", 576)


def test_text_changes_the_cost_and_the_optimum_and_not_the_law():
    a, b = (named(ask("5e12", text_tokens=count), "reasoning") for count in (0, 500))
    assert a.law.fit == b.law.fit
    assert a.optimum.visual_tokens == 1 and b.optimum.visual_tokens == pytest.approx(135, abs=1)
    assert a.best.costs["llm"] == 2e9 * a.best.llm.billions * a.best.visual_tokens


def test_of_every_size_the_best_is_the_closed_form():
    answer = named(ask("1e12", continuous=True), "reasoning")
    assert answer.best.visual_tokens == pytest.approx(answer.optimum.visual_tokens, abs=0.6)
    assert answer.best.llm.billions == pytest.approx(1e12 / (2e9 * (50 + answer.best.visual_tokens)))


def test_without_a_budget_the_best_at_growing_budgets():
    frontier = ask()
    budgets = frontier.budgets()
    assert frontier.asks_for_range and len(budgets) == 8 and budgets == sorted(budgets)
    # Rounded up, so the cheapest candidate fits in the first budget and the dearest in the last.
    assert 51e9 <= budgets[0] < 52e9 and budgets[-1] >= 2e9 * 14 * 626
    rows = frontier.to_json(top=1)["answers"]["reasoning"]["frontier"]
    assert [row["budget"] for row in rows] == budgets
    assert all(row["costs"]["llm"] <= row["budget"] for row in rows)
    errors = [row["error"] for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert rows[-1]["llm"] == "qwen1.5-14b" and rows[-1]["visual_tokens"] == 576


def test_own_measurements_use_their_llms():
    answer = ask("1e11", measurements=own(*drawn(LAW)), text_tokens=8).answers[0]
    assert {candidate.llm.name for candidate in answer.considered} == {"m1", "m2", "m4"}
    assert answer.optimum.visual_tokens == pytest.approx(8, rel=1e-4)
    assert answer.best.llm.num_params == round(answer.best.llm.billions * 1.25e9)


def test_what_cannot_be_answered_is_named_and_the_rest_is():
    flat = ProductLaw(0.0, 1.0, 1.0, 0.25)
    frontier = ask(measurements=own(*drawn(LAW), *drawn(flat, name="ocr")))
    assert [answer.name for answer in frontier.answers] == ["reasoning"]
    assert "nothing to fit" in frontier.unanswered["ocr"]
    # Cost hardly depends on a few tokens beside much text: most budgets change nothing and are left out.
    assert len(ask(measurements=own(*drawn(LAW)), text_tokens=10_000).budgets()) < 8
    with pytest.raises(UserError, match="measure 1 more size"):
        ask(measurements=own(*drawn(LAW, sizes=(1.0, 2.0))))
    reached = ask(target_error=0.5)
    assert [answer.name for answer in reached.answers] == ["reasoning"]
    assert "No candidate is predicted to reach an error of 0.5 in ocr" in reached.unanswered["ocr"]


def test_every_compressor_has_its_own_answers_and_mix():
    better = ProductLaw(0.4, 0.4, 0.2, 0.1)
    rows = [
        row
        for label, law in (("avgpool", LAW), ("quecc", better))
        for name in ("reasoning", "ocr")
        for row in drawn(law, name=f"{name} ({label})", compressor=label)
    ]
    frontier = ask(measurements=own(*rows), mix={"reasoning": 1, "ocr": 1})
    assert [answer.name for answer in frontier.answers[-2:]] == ["mix (avgpool)", "mix (quecc)"]
    assert frontier.answers[-1].best.error < frontier.answers[-2].best.error
    assert {answer.pricing.vision.compressor for answer in frontier.answers} == {"avgpool", "quecc"}


def test_a_target_may_be_that_of_one_family():
    frontier = ask(target_error={"reasoning": 0.5})
    assert [answer.name for answer in frontier.answers] == ["reasoning"]
    assert best(frontier, "reasoning") == ("7b", 16)


def test_choices_to_compare_are_all_there_is():
    answer = named(ask("5e12", compare=[("7b", 576), ("14b", 64)]), "ocr")
    assert [(c.llm.name, c.affordable) for c in answer.choices] == [("qwen1.5-7b", False), ("qwen1.5-14b", True)]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"tokens": [0, 4]}, "at least 1"),
        ({"compare": [("7b", 0)]}, "at least 1"),
        ({"llms": ["qwen1.5-6b"]}, "did you mean"),
        ({"compare": [("7b", 4)], "llms": ["7b"]}, "leave --llms"),
        ({"continuous": True, "llms": ["7b"]}, "leave --llms"),
        ({"continuous": True}, "one budget in FLOPs"),
        ({"mix": {"reasoning": -1.0}}, "must be positive"),
        ({"mix": {"reasoning": 1.0, "charts": 1.0}}, "the families with a law are reasoning, ocr"),
        ({"target_error": 50.0}, "between 0 and 1"),
        ({"target_error": {"charts": 0.5}}, "no law for charts"),
    ],
)
def test_impossible_questions_are_refused(question, message):
    with pytest.raises(UserError, match=message):
        ask(**question)


def test_impossible_costs_are_refused():
    with pytest.raises(UserError, match="cannot be negative"):
        ask(text_tokens=-1)
    with pytest.raises(UserError, match=r"No candidate fits in 10 GFLOPs of cost llm: .*qwen1.5-0.5b.* costs 51 GFLOP"):
        ask("1e10")
