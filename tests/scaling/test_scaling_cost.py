"""Costs and how budgets are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.vision_tower import VisionTower
from vlmkit.registry import LLMFacts, VisionTowerFacts, vision_tower
from vlmkit.scaling.cost import (
    decoder,
    format_flops,
    format_params,
    parse_budget,
    prefill_flops,
    tower_flops,
    vocabulary_flops,
)


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


SMALL = LLMFacts("small-gqa", "test", "qwen2", 0.0, 48, 112, 3, 6, 2, 8, 512, False)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_flops_of_a_language_model_are_those_torch_counts(trained: bool) -> None:
    from transformers import AutoConfig, Qwen2ForCausalLM

    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=SMALL.vocab_size,
        hidden_size=SMALL.hidden_size,
        intermediate_size=SMALL.intermediate_size,
        num_hidden_layers=SMALL.num_layers,
        num_attention_heads=SMALL.num_heads,
        num_key_value_heads=SMALL.num_kv_heads,
        head_dim=SMALL.head_dim,
    )
    # Eager attention is made of matrix products; the counter does not know the fused kernel of CPUs.
    model = Qwen2ForCausalLM._from_config(config, attn_implementation="eager").requires_grad_(trained)
    inputs = torch.zeros(1, 21, SMALL.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        hidden = model.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :5])
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    layers, head = decoder(SMALL), vocabulary_flops(SMALL, 5)
    assert forward.get_total_flops() == layers.forward_flops(21) + head
    weights = layers.matrix_weights if trained else 0
    assert backward.get_total_flops() == layers.backward_flops(21, weights) + (2 if trained else 1) * head


def test_flops_of_a_tower_are_those_torch_counts() -> None:
    facts = VisionTowerFacts("test", width=64, layers=4, heads=2, patch_size=8, image_size=32)
    tower = VisionTower(config_from_facts(facts))
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tower(pixels, frozenset({"patches"}))
    assert counter.get_total_flops() == tower_flops(facts)


def test_a_convnet_has_no_flops_by_formula() -> None:
    with pytest.raises(ValueError, match="convnet"):
        tower_flops(vision_tower("RN50"))
