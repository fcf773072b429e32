"""What is offered, what it costs, and which budgets allow it."""

from __future__ import annotations

import pytest

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.scaling.budgets import parse_budgets
from vlmkit.scaling.candidates import Pricing, name_llms, offer, offer_every_size
from vlmkit.scaling.cost import FullCost, MemoryCost, VisionSide
from vlmkit.scaling.latency import LatencyTable, Timing
from vlmkit.scaling.measurements import Measurement, Measurements, SizedLLM, load_published
from vlmkit.scaling.workload import Workload

SMALL = SizedLLM("qwen1.5-0.5b", 0.5, 463_987_712)
LARGE = SizedLLM("qwen1.5-7b", 7.0, 7_721_324_544)
OWN = SizedLLM("own", 1.0, 10**9)


def budgets(*texts):
    return parse_budgets(texts)


def table(*rows):
    timings = [
        Timing(name, count, "ViT-L-14-336", 336, "avgpool", 1.0, {"prefill": [ms], "decode": [1.0]})
        for name, count, ms in rows
    ]
    return LatencyTable("a machine", "2026-01-01", {}, "fp32", "cpu", 1, Workload(), tuple(timings))


def test_the_first_budget_names_the_cost_and_each_limits_its_own_unit():
    assert Pricing().primary.name == "llm"
    assert Pricing(budgets("24GB", "5e12")).primary.name == "memory"
    both = Pricing(budgets("5e12", "4GB"), cost="full")
    assert [model.name for model in both.models] == ["full", "memory"] and both.prefill_budget is None
    small, large = both.price(SMALL, 16), both.price(LARGE, 16)
    vision = VisionSide.of()
    assert small.costs == {
        "full": FullCost(Workload(), vision).cost(SMALL, 16),
        "memory": MemoryCost(Workload(), vision).cost(SMALL, 16),
    }
    assert both.allows(small) and not both.allows(large)
    assert large.costs["full"] < 5e12 < large.costs["memory"] * 1e3


def test_milliseconds_come_from_a_table():
    for ask in (lambda: Pricing(cost="latency"), lambda: Pricing(budgets("50ms"))):
        with pytest.raises(UserError, match="--latency-table"):
            ask()
    timed = Pricing(budgets("50ms"), table=table(("qwen1.5-0.5b", 1, 10.0), ("qwen1.5-0.5b", 17, 42.0)))
    assert timed.primary.name == "latency"
    assert timed.price(SMALL, 9).costs == {"latency": 26.0}


def test_what_has_no_price_is_left_out_unless_it_was_asked_for():
    timed = Pricing(cost="latency", table=table(("qwen1.5-0.5b", 1, 10.0), ("qwen1.5-0.5b", 16, 40.0)))
    candidates, notes = offer([SMALL, LARGE], [1, 16, 64], timed, asked_for=False)
    assert [(c.llm.name, c.visual_tokens) for c in candidates] == [("qwen1.5-0.5b", 1), ("qwen1.5-0.5b", 16)]
    assert notes[0].startswith("4 of 6 candidates are left out") and "64 beside 50 lie outside" in notes[0]
    for llms in ([SMALL, LARGE], [LARGE]):
        with pytest.raises(UserError):
            offer(llms, [1, 64], timed, asked_for=len(llms) == 2)
    with pytest.raises(UserError, match="needs the shape of own"):
        offer([OWN], [1], Pricing(cost="full"), asked_for=False)
    assert Pricing(cost="full").try_price(OWN, 1) is None


def test_the_measured_compressor_is_the_one_that_is_paid_for():
    asked = Measurement("f", SMALL, 4, 0.5, compressor="quecc", query="none")
    full = Pricing(cost="full")
    assert full.behind(asked).primary.describe().count("quecc") == 1
    assert full.behind(asked).vision.query == "none"
    assert full.behind(Measurement("f", SMALL, 4, 0.5, compressor="theirs")) is full
    fixed = Pricing(cost="full", follows_measured=False)
    assert fixed.behind(asked) is fixed


def test_below_the_cheapest_it_says_what_the_cheapest_costs():
    def refused(*texts):
        pricing = Pricing(budgets(*texts))
        candidates = [pricing.price(llm, count) for llm in (SMALL, LARGE) for count in (1, 16)]
        with pytest.raises(UserError) as refusal:
            pricing.check_affordable(candidates)
        return str(refusal.value)

    assert "fits in 10 GFLOPs of cost llm: the cheapest (LLM qwen1.5-0.5b, visual tokens 1;" in refused("1e10")
    assert "costs 51 GFLOPs" in refused("1e10")
    assert "fits in 1 GB of cost memory: the cheapest among those within the other budgets" in refused("1e12", "1GB")


def test_llms_by_name_alias_and_family():
    published = load_published()
    assert [llm.billions for llm in name_llms(published, ["qwen1.5"])] == [0.5, 1.8, 4, 7, 14, 32, 72]
    assert [llm.name for llm in name_llms(published, ["7b", "Qwen2.5-7B", "7b"])] == ["qwen1.5-7b", "qwen2.5-7b"]
    own = Measurements((Measurement("f", OWN, 4, 0.5),), "non-embedding", {})
    found = name_llms(own, ["own", "nano"])
    assert found == [OWN, SizedLLM("nano", registry.llm("nano").num_params_non_embedding / 1e9, found[1].num_params)]
    for name, near in {"qwen1.5-6b": "qwen1.5-", "qwen15": "qwen1.5", "pwn": "own", "???": "llama3.1"}.items():
        with pytest.raises(UserError, match=f"did you mean .*{near}"):
            name_llms(own, [name])


def test_llms_of_every_size_spend_the_budget():
    pricing = Pricing(budgets("1e12"), workload=Workload(cached_text=True))
    candidates = offer_every_size((1, 576), pricing)
    counts = [candidate.visual_tokens for candidate in candidates]
    assert (counts[0], counts[-1]) == (1, 576) and counts == sorted(set(counts))
    assert all(2e9 * c.llm.billions * c.visual_tokens == pytest.approx(1e12) for c in candidates)
    assert all(pricing.allows(candidate) for candidate in candidates)
    for refused in (Pricing(), Pricing(budgets("1e12"), cost="full"), Pricing(budgets("1e12", "4GB"))):
        with pytest.raises(UserError, match="leave --continuous out"):
            offer_every_size((1, 576), refused)
