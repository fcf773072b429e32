"""Vision towers of transformers against transformers' own hidden states, from directories in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from vlmkit import registry
from vlmkit.config import CompressorConfig
from vlmkit.errors import UserError
from vlmkit.models.seeding import seeded
from vlmkit.models.towers import default_image_size, find_tower, find_tower_config, tower_from_config
from vlmkit.models.transformers_tower import TransformersTower
from vlmkit.models.vlm import VLM

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 9,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NAFLEX = {key: value for key, value in VISION.items() if key != "image_size"} | {"num_patches": 16}
MODELS = {  # as published: CLIP and SigLIP with their text towers
    "clip": lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8)),
    "clip alone": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)),
    "siglip": lambda: SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "siglip2": lambda: Siglip2VisionModel(Siglip2VisionConfig(**NAFLEX)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**VISION)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION, num_register_tokens=3)),
}
REFERENCES = {
    "clip": CLIPVisionModel,
    "clip alone": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "dinov2": Dinov2Model,
    "registers": Dinov2WithRegistersModel,
}
PREFIX = {"clip": 1, "clip alone": 1, "siglip": 0, "siglip2": 0, "dinov2": 1, "registers": 4}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]


def save(directory: Path, family: str) -> str:
    with seeded(0):
        model = MODELS[family]()
    model.save_pretrained(directory)
    CLIPImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(directory)
    return str(directory)


def images(side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 255.0 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize("family", REFERENCES)
@pytest.mark.parametrize("side", [32, 48])
def test_features_are_transformers_hidden_states(tmp_path: Path, family: str, side: int) -> None:
    name = save(tmp_path, family)
    tower = find_tower(name, side).eval()
    features = tower(images(side), frozenset({"patches", "levels"}), levels=(0, 2))
    resized = {} if family in ("dinov2", "registers") else {"interpolate_pos_encoding": True}  # DINOv2 always does
    reference = REFERENCES[family].from_pretrained(name).eval()
    expected = reference(normalised(images(side)), output_hidden_states=True, **resized)
    hidden = [state[:, PREFIX[family] :] for state in expected.hidden_states]
    torch.testing.assert_close(features.patches, hidden[-2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.levels, torch.cat([hidden[1], hidden[3]], dim=-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower.pooled(images(side)), expected.pooler_output, rtol=1e-5, atol=1e-5)
    assert features.grid == tower.grid == (side // 8, side // 8)
    assert (tower.width, tower.num_layers, tower.patch_size, tower.image_size) == (32, 4, 8, side)


@torch.no_grad()
@pytest.mark.parametrize("family", REFERENCES)
def test_attention_is_that_of_the_penultimate_block(tmp_path: Path, family: str) -> None:
    name = save(tmp_path, family)
    features = find_tower(name).eval()(images(), frozenset({"patches", "attention", "keys"}))
    reference = REFERENCES[family].from_pretrained(name, attn_implementation="eager").eval()
    weights = reference(normalised(images()), output_attentions=True).attentions[-2].mean(dim=1)
    prefix = PREFIX[family]
    received = weights[:, 0] if prefix else weights.mean(dim=1)
    torch.testing.assert_close(features.attention, received[:, prefix:], rtol=1e-4, atol=1e-6)
    assert features.keys.shape == (2, 16, 16)


@torch.no_grad()
@pytest.mark.parametrize("side", [32, 48])
def test_siglip2_is_fed_as_its_own_processor_feeds_it(tmp_path: Path, side: int) -> None:
    name = save(tmp_path, "siglip2")
    tower = find_tower(name, side).eval()
    height = width = side // 8
    rows = normalised(images(side)).permute(0, 2, 3, 1).reshape(2, height, 8, width, 8, 3)
    inputs = {
        "pixel_values": rows.transpose(2, 3).reshape(2, height * width, -1),
        "pixel_attention_mask": torch.ones(2, height * width, dtype=torch.long),
        "spatial_shapes": torch.tensor([[height, width]] * 2),
    }
    expected = Siglip2VisionModel.from_pretrained(name).eval()(**inputs, output_hidden_states=True)
    features = tower(images(side), frozenset({"patches"}))
    torch.testing.assert_close(features.patches, expected.hidden_states[-2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower.pooled(images(side)), expected.pooler_output, rtol=1e-5, atol=1e-5)


def test_the_papers_levels_of_a_vit_l_come_out_exactly() -> None:
    # After 12, 16, 22 and 23 of 24 blocks (arXiv 2411.03312): entries 12, 16, 22, 23 of hidden_states.
    blocks = registry.level_blocks((12 / 24, 16 / 24, 22 / 24, 23 / 24), 24)
    assert [block + 1 for block in blocks] == [12, 16, 22, 23]
    vision = CLIPVisionConfig(**{**VISION, "num_hidden_layers": 24}).to_dict()
    tower = tower_from_config({"transformers": vision, "preprocess_cfg": {"size": 32, "mean": MEAN, "std": STD}}).eval()
    with torch.no_grad():
        features = tower(images(), frozenset({"patches", "levels"}), levels=blocks)
        states = tower.visual(normalised(images()), output_hidden_states=True).hidden_states
    expected = torch.cat([states[depth][:, 1:] for depth in (12, 16, 22, 23)], dim=-1)
    torch.testing.assert_close(features.levels, expected)
    torch.testing.assert_close(features.patches, states[23][:, 1:])


@pytest.mark.parametrize("family", MODELS)
def test_a_saved_vlm_loads_again_with_its_tower(tmp_path: Path, family: str) -> None:
    tower = find_tower(save(tmp_path / "tower", family), image_size=48)
    shape = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    llm = AutoModelForCausalLM.from_config(LlamaConfig(**shape, num_attention_heads=2))
    model = VLM.join(tower, llm, CompressorConfig(num_visual_tokens=4), 5, seed=0).eval()
    model.save_pretrained(tmp_path / "vlm")
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "vlm", output_loading_info=True)
    assert isinstance(loaded.vision_tower, TransformersTower) and not any(info.values())
    assert loaded.vision_tower.image_size == 48
    assert loaded.vision_tower.fingerprint() == tower.fingerprint()
    ids = torch.tensor([[1, 5, 5, 5, 5, 7]] * 2)
    with torch.no_grad():
        logits = [vlm.eval()(input_ids=ids, pixel_values=images(48)).logits for vlm in (loaded, model)]
    assert torch.equal(*logits)


def test_the_fingerprint_covers_size_statistics_and_weights(tmp_path: Path) -> None:
    name = save(tmp_path, "clip")
    base = find_tower(name).fingerprint()
    assert find_tower(name).fingerprint() == base != find_tower(name, 48).fingerprint()
    weights = load_file(tmp_path / "model.safetensors")
    weights["vision_model.post_layernorm.bias"] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    changed = find_tower(name).fingerprint()
    assert changed != base
    (tmp_path / "preprocessor_config.json").unlink()
    assert find_tower(name).fingerprint() != changed
    assert find_tower_config(name)["preprocess_cfg"]["mean"] == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4)


@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, family: str) -> None:
    tower = find_tower(save(tmp_path, family)).train()
    gradients = []
    for on in (False, True):
        tower.set_gradient_checkpointing(on)
        tower.zero_grad()
        tower(images(), frozenset({"patches"})).patches.square().sum().backward()
        gradients.append([p.grad.clone() for p in tower.blocks()[0].parameters()])
    assert all(torch.equal(*pair) and pair[0].any() for pair in zip(*gradients, strict=True))


def test_published_towers_get_the_papers_grid_and_own_ones_keep_theirs(tmp_path: Path) -> None:
    assert default_image_size("ViT-L-14") == default_image_size("vit-b-14") == 336
    assert default_image_size("ViT-S-16") == default_image_size("ViT-B-16-quickgelu") == 384
    assert default_image_size("ViT-L-14-336") is None  # is there already
    assert default_image_size("ViT-B-32") is default_image_size("RN50") is default_image_size("ViT-mini-8-64") is None
    save(tmp_path, "clip")
    config = json.loads((tmp_path / "config.json").read_text())
    for size, patch, expected in ((224, 14, 336), (384, 14, None), (224, 16, 384), (64, 8, None)):
        config["vision_config"] |= {"image_size": size, "patch_size": patch}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert default_image_size(str(tmp_path)) == expected


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"someone/no-such-tower cannot be had.*hf download.*--local-dir"):
        find_tower("someone/no-such-tower")
    name = save(tmp_path, "clip")
    with pytest.raises(UserError, match="60 pixels do not divide into patches of 8; ask for 56 or 64"):
        find_tower(name, 60)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.pre_layrnorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors of its vision tower \(pre_layrnorm.weight"):
        find_tower(name)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be had in this directory"):
        find_tower(name)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no vision tower that vlmkit knows \(llama\)"):
        find_tower(name)
