"""The registry's facts against the libraries that build the models."""

from __future__ import annotations

import pytest

from vlmkit import registry
from vlmkit.errors import UserError

ONE_OF_EACH_KIND = ["tiny", "qwen1.5-0.5b", "qwen1.5-7b", "qwen1.5-32b", "qwen2.5-7b", "vicuna-13b", "llama3.2-1b"]


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_parameter_counts_are_those_of_the_real_model(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    facts = registry.llm(name)
    config = AutoConfig.for_model(
        facts.architecture,
        hidden_size=facts.hidden_size,
        intermediate_size=facts.intermediate_size,
        num_hidden_layers=facts.num_layers,
        num_attention_heads=facts.num_heads,
        num_key_value_heads=facts.num_kv_heads,
        head_dim=facts.head_dim,
        vocab_size=facts.vocab_size,
        tie_word_embeddings=facts.tied_embeddings,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embeddings = {id(p): p.numel() for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    total = sum(p.numel() for p in model.parameters())
    assert facts.num_params == total
    assert facts.num_params_non_embedding == total - sum(embeddings.values())


@pytest.mark.parametrize(
    ("name", "published"),
    [("qwen1.5-0.5b", 463_987_712), ("qwen1.5-1.8b", 1_836_828_672), ("vicuna-7b", 6_738_415_616)],
)
def test_parameter_counts_are_the_published_ones(name: str, published: int) -> None:
    assert registry.llm(name).num_params == published


@pytest.mark.parametrize("name", ["ViT-mini-8-64", "ViT-B-16"])
def test_tower_parameter_counts_are_those_of_open_clip(name: str) -> None:
    from open_clip.transformer import VisionTransformer

    facts = registry.vision_tower(name)
    tower = VisionTransformer(
        facts.image_size, facts.patch_size, facts.width, facts.layers, facts.heads, facts.mlp_ratio, pool_type="avg"
    )
    tower.proj = None
    assert facts.num_params == sum(p.numel() for p in tower.parameters())


@pytest.mark.parametrize("name", ["RN50", "ConvNeXt-Tiny"])
def test_convnet_parameter_counts_are_those_of_timm(name: str) -> None:
    import timm
    import torch

    facts = registry.vision_tower(name)
    with torch.device("meta"):
        network = timm.create_model(facts.timm_network, num_classes=0)
    assert facts.num_params == sum(p.numel() for p in network.parameters())
    assert facts.width == network.num_features and facts.patch_size == network.feature_info[-1]["reduction"]


@pytest.mark.parametrize("size", ["Ti", "S", "B", "L"])
@pytest.mark.parametrize("patch", [14, 16])
def test_the_published_vits_come_with_both_patches(size: str, patch: int) -> None:
    facts = registry.vision_tower(f"ViT-{size}-{patch}")
    assert facts.patch_size == patch and facts.image_size == 224 and facts.width // facts.heads == 64


def test_aliases_and_case() -> None:
    assert registry.llm("7B").name == "qwen1.5-7b"
    assert registry.vision_tower("vit-b-16").width == 768
    assert registry.is_llm("14b") and not registry.is_llm("some/hub-id")


def test_unknown_names_point_to_the_nearest() -> None:
    with pytest.raises(UserError, match=r"qwen2\.5-7b"):
        registry.llm("qwen25-7b")
    with pytest.raises(UserError, match="avgpool"):
        registry.compressor("avg-pool")


def test_every_kind_of_model_has_an_entry_that_needs_no_download() -> None:
    assert any(facts.embedded for facts in registry.LLMS.values())
    sizes = [registry.llm(name).num_params_non_embedding for name in ("nano", "micro", "tiny", "small")]
    assert sizes == sorted(sizes) and sizes[0] > 20_000


def test_every_set_of_benchmarks_names_benchmarks_that_count_themselves_to_it() -> None:
    for name, found in registry.BENCHMARK_SETS.items():
        members = {facts.name for facts in registry.BENCHMARKS.values() if name in facts.families}
        assert set(found.benchmarks) == members - {"miniworld"}
    assert len(registry.benchmark_set("reasoning").benchmarks) == 9
