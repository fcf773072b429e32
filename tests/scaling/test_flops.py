"""FLOPs and weights by formula, against what torch counts on the networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_flops import counted
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.models.compressors import CompressorShape, build_compressor
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.projector import build_projector
from vlmkit.models.vision_tower import VisionTower
from vlmkit.registry import LLMFacts, VisionTowerFacts
from vlmkit.scaling import flops


def test_prefill_cost_is_two_flops_a_parameter_and_token():
    assert flops.prefill_flops(14, 64, 50) == 2 * 14e9 * 114
    np.testing.assert_array_equal(flops.prefill_flops(0.5, np.array([1.0, 576.0]), 0), [1e9, 576e9])


QWEN = LLMFacts("qwen-gqa", "test", "qwen2", 0.0, 48, 112, 3, 6, 2, 8, 512, False)
LLAMA = LLMFacts("llama-gqa", "test", "llama", 0.0, 64, 96, 2, 8, 4, 16, 300, True)
"""Heads of another size than width / heads, and a tied vocabulary."""
LLMS = pytest.mark.parametrize("facts", [QWEN, LLAMA], ids=["qwen2", "llama"])


def network(facts: LLMFacts) -> PreTrainedModel:
    config = AutoConfig.for_model(
        facts.architecture,
        vocab_size=facts.vocab_size,
        hidden_size=facts.hidden_size,
        intermediate_size=facts.intermediate_size,
        num_hidden_layers=facts.num_layers,
        num_attention_heads=facts.num_heads,
        num_key_value_heads=facts.num_kv_heads,
        head_dim=facts.head_dim,
        tie_word_embeddings=facts.tied_embeddings,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@LLMS
def test_flops_of_a_language_model_are_those_torch_counts(facts: LLMFacts, trained: bool) -> None:
    model = network(facts).requires_grad_(trained)
    layers, weights = flops.decoder(facts), flops.decoder(facts).matrix_weights if trained else 0
    for tokens in (5, 21, 100):
        inputs = torch.zeros(1, tokens, facts.hidden_size, requires_grad=True)
        outputs: list[torch.Tensor] = []

        def read(inputs: torch.Tensor = inputs, outputs: list[torch.Tensor] = outputs) -> None:
            hidden = model.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state
            outputs.append(model.lm_head(hidden[:, :5]))

        head = flops.vocabulary_flops(facts, 5)
        assert counted(read) == layers.forward_flops(tokens) + head
        back = layers.backward_flops(tokens, weights) + (2 if trained else 1) * head
        assert counted(lambda outputs=outputs: outputs[0].sum().backward()) == back


@LLMS
@torch.no_grad()
def test_flops_behind_a_cache_are_those_torch_counts(facts: LLMFacts) -> None:
    model, layers = network(facts), flops.decoder(facts)
    for cached, tokens in ((7, 1), (7, 30), (40, 16)):
        cache = DynamicCache(config=model.config)
        model(torch.zeros(1, cached, dtype=torch.long), past_key_values=cache)
        text = torch.zeros(1, tokens, dtype=torch.long)
        found = counted(lambda text=text, cache=cache: model(text, past_key_values=cache, logits_to_keep=1))
        assert found == layers.forward_flops(tokens, cached) + flops.vocabulary_flops(facts, 1)
    assert layers.decode_flops(3, 10) == sum(layers.forward_flops(1, cached) for cached in (10, 11, 12))


@LLMS
@torch.no_grad()
def test_a_cache_holds_as_many_values_as_it_says(facts: LLMFacts) -> None:
    model = network(facts)
    cache = DynamicCache(config=model.config)
    model(torch.zeros(1, 9, dtype=torch.long), past_key_values=cache)
    assert sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) == flops.kv_cache_values(facts, 9)


@pytest.mark.parametrize("size", [32, 64, 112])
def test_flops_of_a_tower_are_those_torch_counts(size: int) -> None:
    facts = VisionTowerFacts("test", width=64, layers=4, heads=2, patch_size=8, image_size=size)
    tower = VisionTower(config_from_facts(facts))
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    assert counted(lambda: tower(pixels, frozenset({"patches"}))) == flops.tower_flops(facts)


def test_a_convnet_has_no_flops_by_formula() -> None:
    with pytest.raises(UserError, match="RN50 is a convnet"):
        flops.tower_flops(registry.vision_tower("RN50"))


@pytest.mark.parametrize(
    ("name", "layers", "told"),
    [(name, 4, 40) for name in sorted(registry.COMPRESSORS)]
    # With twelve blocks three levels are different ones, with four two.
    + [("tokenpacker", 12, 40), ("quecc+", 12, 40), ("quecc", 4, None)],
)
@torch.no_grad()
def test_flops_and_weights_of_a_compressor_are_those_of_its_module(name: str, layers: int, told: int | None) -> None:
    facts = VisionTowerFacts("test", width=32, layers=layers, heads=4, patch_size=8, image_size=32)
    tower = VisionTower(config_from_facts(facts)).eval()
    for count in (16,) if name in ("none", "downsample") else (1, 4, 16):
        shape = CompressorShape(32, layers, 8, (4, 4), told, (count,))
        module, projector = build_compressor(name, shape).requires_grad_(False), build_projector(32, 40)
        features = tower(torch.zeros(1, 3, 32, 32), module.requires, module.levels)
        query = torch.zeros(1, 40) if module.conditioned else None
        part = flops.compressor(name, facts, told if module.conditioned else None, count)
        part += flops.projector(facts, 40, count)
        weights = [parameter.numel() for each in (module, projector) for parameter in each.parameters()]
        assert part.weights == sum(weights)

        def compress(module=module, projector=projector, features=features, query=query, count=count) -> None:
            projector(module(features, query, count))

        found = counted(compress)
        if name == "prune":  # reads who attends to whom in the tower's penultimate block
            found += counted(lambda m=module: tower(torch.zeros(1, 3, 32, 32), m.requires)) - flops.tower_flops(facts)
        assert found == part.flops
