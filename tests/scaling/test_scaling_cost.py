"""Costs and how budgets are written."""

from __future__ import annotations

import numpy as np
import pytest

from vlmkit.errors import UserError
from vlmkit.scaling.cost import format_flops, format_params, parse_budget, prefill_flops


def test_prefill_cost_is_two_flops_a_parameter_and_token():
    assert prefill_flops(14, 64, 50) == 2 * 14e9 * 114
    np.testing.assert_array_equal(prefill_flops(0.5, np.array([1.0, 576.0]), 0), [1e9, 576e9])


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("5e12", 5e12),
        ("5TFLOPs", 5e12),
        ("5 TFLOP", 5e12),
        ("800GFLOPs", 8e11),
        ("  2.5 tflops ", 2.5e12),
        ("3000000", 3e6),
        ("1.5P", 1.5e15),
        ("5E", 5e18),
        ("1e3 kflop", 1e6),
    ],
)
def test_budget_notations(text, flops):
    assert parse_budget(text) == pytest.approx(flops, rel=1e-12)


@pytest.mark.parametrize("text", ["50ms", "5 TB", "a lot", "", "nan", "inf", "5TFLOPs/s", "1,5e12"])
def test_budgets_that_are_no_number_of_flops_are_refused(text):
    with pytest.raises(UserError, match="5e12 or 5TFLOPs"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0", "-5e12", "0 TFLOPs", "1e999"])
def test_budgets_that_are_not_positive_are_refused(text):
    with pytest.raises(UserError, match="positive"):
        parse_budget(text)


def test_numbers_for_the_reader():
    assert [format_flops(x) for x in (3.192e12, 51e9, 999.9e9, 626e9, 7)] == [
        "3.19 TFLOPs",
        "51 GFLOPs",
        "1 TFLOPs",
        "626 GFLOPs",
        "7 FLOPs",
    ]
    assert [format_params(x) for x in (14.167e9, 463_987_712, 35_200, 96)] == ["14.2B", "464M", "35.2K", "96"]
