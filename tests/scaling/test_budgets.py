"""How budgets and costs are written."""

from __future__ import annotations

import pytest

from vlmkit.errors import UserError
from vlmkit.scaling.budgets import Unit, format_amount, format_flops, format_params, parse_budget, parse_budgets


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("5e12", 5e12, Unit.flops),
        ("5TFLOPs", 5e12, Unit.flops),
        ("5 TFLOP", 5e12, Unit.flops),
        ("800GFLOPs", 8e11, Unit.flops),
        ("  2.5 tflops ", 2.5e12, Unit.flops),
        ("3000000", 3e6, Unit.flops),
        ("1.5P", 1.5e15, Unit.flops),
        ("5E", 5e18, Unit.flops),
        ("1e3 kflop", 1e6, Unit.flops),
        ("7 FLOPs", 7, Unit.flops),
        ("50ms", 50, Unit.milliseconds),
        ("0.2s", 200, Unit.milliseconds),
        ("1 S", 1000, Unit.milliseconds),
        ("250us", 0.25, Unit.milliseconds),
        ("24GB", 24e9, Unit.bytes),
        ("16GiB", 16 * 2**30, Unit.bytes),
        ("1.5 tib", 1.5 * 2**40, Unit.bytes),
        ("512 B", 512, Unit.bytes),
    ],
)
def test_budget_notations(text, amount, unit):
    budget = parse_budget(text)
    assert budget.amount == pytest.approx(amount, rel=1e-12) and budget.unit is unit


@pytest.mark.parametrize("text", ["5 TW", "a lot", "", "nan", "inf", "5TFLOPs/s", "1,5e12", "50 days", "GB", "3GS"])
def test_budgets_without_a_known_unit_are_refused_with_what_may_be_written(text):
    with pytest.raises(UserError, match=r"5e12 or 5TFLOPs.* 50ms or 0.2s.* 24GB or 16GiB"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0", "-5e12", "0 TFLOPs", "1e999", "-50ms", "0GB"])
def test_budgets_that_are_not_positive_are_refused(text):
    with pytest.raises(UserError, match="positive"):
        parse_budget(text)


def test_a_unit_that_limits_nothing_is_refused():
    assert parse_budget("5e12", [Unit.flops]).amount == 5e12
    with pytest.raises(UserError, match=r"'50ms' is in ms, .*5e12 or 5TFLOPs"):
        parse_budget("50ms", [Unit.flops])


def test_several_budgets_hold_at_once_but_one_of_each_unit():
    budgets = parse_budgets(["5e12", "24GB", "50ms"])
    assert {unit: budget.amount for unit, budget in budgets.items()} == {
        Unit.flops: 5e12,
        Unit.bytes: 24e9,
        Unit.milliseconds: 50,
    }
    with pytest.raises(UserError, match="Two budgets are in bytes, 24 GB and 8 GB"):
        parse_budgets(["24GB", "5e12", "8GB"])


def test_numbers_for_the_reader():
    assert [format_flops(x) for x in (3.192e12, 51e9, 999.9e9, 626e9, 7)] == [
        "3.19 TFLOPs",
        "51 GFLOPs",
        "1 TFLOPs",
        "626 GFLOPs",
        "7 FLOPs",
    ]
    assert [format_params(x) for x in (14.167e9, 463_987_712, 35_200, 96)] == ["14.2B", "464M", "35.2K", "96"]
    assert [format_amount(x, Unit.milliseconds) for x in (0.25, 52.14, 1500)] == ["0.25 ms", "52.1 ms", "1.5 s"]
    assert [format_amount(x, Unit.bytes) for x in (14.2e9, 512)] == ["14.2 GB", "512 B"]
