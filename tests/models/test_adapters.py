"""LoRA on a VLM's language model: where adapters go, what is saved, and that merged, adapted and peft's own agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPTNeoXConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from vlmkit import registry
from vlmkit.config import CompressorConfig, LoRAConfig
from vlmkit.errors import UserError
from vlmkit.models.adapters import adapter_parameters, add_adapters, is_adapted, load_adapted, save_adapted
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM

peft = pytest.importorskip("peft")
TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32))
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLMS = {
    "qwen2 tied": Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "phi3 fused": Phi3Config(**SHAPE),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
}
LAYERS = {"qwen2 tied": 14, "llama": 14, "phi3 fused": 8, "gpt-neox": 8}
LORA = LoRAConfig(r=4, alpha=8)


def parts(llm: PreTrainedConfig) -> tuple[VisionTower, torch.nn.Module]:
    with seeded(0):
        return VisionTower(TOWER), AutoModelForCausalLM.from_config(llm)


def joined(llm: str) -> VLM:
    tower, language_model = parts(LLMS[llm])
    return VLM.join(tower, language_model, CompressorConfig(name="quecc", num_visual_tokens=4), 5, seed=0).eval()


def trained(llm: str) -> VLM:
    """An adapted model whose adapters, compressor and projector are no longer as they started."""
    vlm = joined(llm)
    add_adapters(vlm.language_model, LORA, seed=0)
    with seeded(1), torch.no_grad():
        for p in [*adapter_parameters(vlm.language_model), *vlm.compressor.parameters(), *vlm.projector.parameters()]:
            p += 0.05 * torch.randn_like(p)
    return vlm.eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, 64, (2, 12), generator=generator)
    ids[:, 2:6] = 5
    return {
        "input_ids": ids,
        "pixel_values": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "query_input_ids": torch.randint(6, 64, (2, 3), generator=generator),
        "query_attention_mask": torch.ones(2, 3, dtype=torch.long),
    }


@torch.no_grad()
def logits(vlm: VLM) -> torch.Tensor:
    return vlm.eval()(**batch()).logits


@pytest.mark.parametrize("llm", LLMS)
def test_every_linear_layer_but_the_head_is_adapted_and_nothing_changes_at_first(llm: str) -> None:
    vlm = joined(llm)
    before = logits(vlm)
    add_adapters(vlm.language_model, LORA, seed=3)
    assert is_adapted(vlm.language_model) and torch.equal(logits(vlm), before)
    parameters = adapter_parameters(vlm.language_model)
    assert len(parameters) == 2 * LAYERS[llm]
    assert {id(p) for p in parameters} == {id(p) for p in vlm.language_model.parameters() if p.requires_grad}
    assert not hasattr(vlm.get_output_embeddings(), "lora_A")
    again, other = joined(llm), joined(llm)
    add_adapters(again.language_model, LORA, seed=3)
    add_adapters(other.language_model, LORA, seed=4)
    first, same, different = (adapter_parameters(m.language_model)[0] for m in (vlm, again, other))
    assert torch.equal(first, same) and not torch.equal(first, different)


@pytest.mark.parametrize("llm", LLMS)
def test_merged_adapted_and_peft_agree(tmp_path: Path, llm: str) -> None:
    vlm = trained(llm)
    expected = logits(vlm)
    assert not torch.allclose(expected, logits(joined(llm)), atol=1e-2)
    save_adapted(vlm, tmp_path)
    assert torch.equal(logits(vlm), expected)  # saving left it as it was
    merged, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not is_adapted(merged.language_model)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    tower, base = parts(LLMS[llm])
    adapted = load_adapted(tmp_path / "adapter", base, tower)
    assert is_adapted(adapted.language_model)
    torch.testing.assert_close(logits(adapted), logits(merged), rtol=0, atol=1e-5)
    by_peft = peft.PeftModel.from_pretrained(parts(LLMS[llm])[1], str(tmp_path / "adapter")).eval()
    ids = batch()["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(by_peft(ids).logits, vlm.language_model(ids).logits, rtol=0, atol=1e-5)


def test_the_adapter_directory_is_small_and_in_pefts_layout(tmp_path: Path) -> None:
    vlm = trained("llama")
    save_adapted(vlm, tmp_path)
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert files >= {"adapter_config.json", "adapter_model.safetensors", "connector.safetensors", "config.json"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.model.layers.") for name in weights)
    assert sum(w.numel() for w in weights.values()) == sum(p.numel() for p in adapter_parameters(vlm.language_model))
    connector = load_file(tmp_path / "adapter" / "connector.safetensors")
    assert {name.partition(".")[0] for name in connector} == {"compressor", "projector"}


def test_an_adapter_on_frozen_bf16_weights_is_merged_in_float32(tmp_path: Path) -> None:
    vlm = trained("llama")
    for parameter in vlm.language_model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    save_adapted(vlm, tmp_path)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    layer = vlm.language_model.model.layers[0].mlp.up_proj
    expected = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    assert torch.equal(merged.language_model.model.layers[0].mlp.up_proj.weight, expected)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_adapted(trained("llama"), tmp_path)
    tower, base = parts(LLMS["gpt-neox"])
    with pytest.raises(UserError, match=r"does not fit the base given .*give its own base"):
        load_adapted(tmp_path / "adapter", base, tower)
    tower, base = parts(LLMS["llama"])
    connector = load_file(tmp_path / "adapter" / "connector.safetensors")
    del connector["projector.0.bias"]
    save_file(connector, tmp_path / "adapter" / "connector.safetensors")
    with pytest.raises(UserError, match=r"does not fit the base given \(projector.0.bias"):
        load_adapted(tmp_path / "adapter", base, tower)
    (tmp_path / "adapter" / "connector.safetensors").unlink()
    with pytest.raises(UserError, match=r"no connector.safetensors; give the model/adapter directory"):
        load_adapted(tmp_path / "adapter", base, tower)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_four_bits_without_a_gpu_are_refused() -> None:
    with pytest.raises(UserError, match=r"nf4 needs an NVIDIA GPU.*leave lora.quantize out"):
        add_adapters(parts(LLMS["llama"])[1], LoRAConfig(quantize="nf4"), seed=0)
