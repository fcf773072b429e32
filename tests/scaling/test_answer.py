"""The order of choices, what they lose, how sure they are, and the question turned round."""

from __future__ import annotations

import numpy as np
import pytest

from vlmkit.errors import UserError
from vlmkit.scaling.answer import answer
from vlmkit.scaling.budgets import parse_budgets
from vlmkit.scaling.candidates import Pricing, offer
from vlmkit.scaling.measurements import Measurement, SizedLLM

ERRORS = {1.0: 0.5, 2.0: 0.4, 4.0: 0.2}
SHIFTS = {1.0: (0.0, 0.0, 0.0, 0.0), 2.0: (0.0, 0.0, -0.3, 0.0), 4.0: (0.1, 0.0, 0.1, 0.0)}


class Tabled:
    """Errors and draws by the LLM's size alone, worked out by hand."""

    name = "tabled"
    sizes, tokens = (1.0, 2.0), (1.0, 16.0)
    counts = (1, 16)
    example = Measurement("tabled", SizedLLM("m1", 1.0, 10**9), 1, 0.5)
    rows = (example,)

    def predict(self, N, V):
        return np.array([ERRORS[n] for n in N])

    def draws(self, N, V):
        return np.array([[ERRORS[n] + SHIFTS[n][draw] for n in N] for draw in range(4)])

    def optimum(self, text_tokens, counts, flops):
        return None


LLMS = [SizedLLM(f"m{n}", float(n), n * 10**9) for n in (1, 2, 4)]


def ask(*budgets, counts=(10,), **options):
    pricing = Pricing(parse_budgets(budgets))
    candidates, _ = offer(LLMS, counts, pricing, asked_for=True)
    return answer(Tabled(), candidates, pricing, **options)


def names(found):
    return [choice.llm.name for choice in found.choices]


def test_best_first_with_what_the_others_lose():
    found = ask()
    assert names(found) == ["m4", "m2", "m1"]
    assert [choice.behind for choice in found.choices] == pytest.approx([0, 1.0, 1.5])
    # m4 has the least error in draws 0, 1 and 3, m2 (0.1 to m4's 0.3) in draw 2.
    assert [choice.probability for choice in found.choices] == [0.75, 0.25, 0]
    assert found.choices[1].interval == pytest.approx((0.1, 0.4))


def test_probability_is_among_what_the_budget_allows():
    found = ask("240GFLOPs")  # 2 N (50 + 10) is 120, 240 and 480 GFLOPs
    assert names(found) == ["m2", "m1"] and len(found.considered) == 3
    assert [choice.probability for choice in found.choices] == [1, 0]


def test_equal_errors_are_ordered_by_cost_and_equally_good():
    found = ask(counts=(16, 1))
    assert [choice.probability for choice in found.choices] == [0.75, 0.75, 0.25, 0.25, 0, 0]
    assert [(choice.llm.name, choice.visual_tokens) for choice in found.choices[:2]] == [("m4", 1), ("m4", 16)]


def test_a_target_orders_by_cost_what_reaches_it():
    found = ask(target=0.4)
    assert names(found) == ["m2", "m4"]
    assert [choice.behind for choice in found.choices] == pytest.approx([0, 1.0])
    assert [choice.probability for choice in found.choices] == [1, 1]
    assert [choice.probability for choice in ask(target=0.25).choices] == [0.5]
    with pytest.raises(UserError, match=r"error of 0.1 in tabled: the closest is LLM m4 with 10 .* at 0.2000"):
        ask(target=0.1)
    with pytest.raises(UserError, match="the closest is LLM m2"):
        ask("240GFLOPs", target=0.25)


def test_choices_to_compare_may_be_over_the_budget():
    found = ask("240GFLOPs", keep_unaffordable=True)
    assert [(choice.llm.name, choice.affordable) for choice in found.choices] == [
        ("m4", False),
        ("m2", True),
        ("m1", True),
    ]
    with pytest.raises(UserError, match="costs 120 GFLOPs"):
        ask("1e9")


def test_extrapolations_are_marked_and_said():
    found = ask(counts=(10, 64))
    marked = {(choice.llm.name, choice.visual_tokens): choice.extrapolated for choice in found.choices}
    assert marked["m4", 64] == ("size", "tokens") and marked["m4", 10] == ("size",) and marked["m1", 10] == ()
    assert found.notes == (
        "* Extrapolated in size: m4 (measured 1B to 2B).",
        "* Extrapolated in tokens: 64 (measured 1 to 16).",
    )


def test_without_draws_there_is_an_answer_without_chances(monkeypatch):
    monkeypatch.setattr(Tabled, "draws", lambda self, N, V: None)
    found = ask()
    assert names(found) == ["m4", "m2", "m1"]
    assert all(choice.interval is None and choice.probability is None for choice in found.choices)
