"""The attention and the keys of patches against torch's own multi-head attention, in open_clip's ViT and in timm's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.transformers_tower import TransformersTower
from vlmkit.models.vision_tower import VisionTower, build_tower

FACTS = registry.VisionTowerFacts("t", width=32, layers=3, heads=4, patch_size=8, image_size=32)
FIELDS = frozenset({"patches", "attention", "keys"})


def open_clip_tower(pooling: str) -> VisionTower:
    torch.manual_seed(0)
    tower = VisionTower(config_from_facts(FACTS, pooling=pooling)).eval()
    for parameter in tower.parameters():  # far enough from zero that attention differs from patch to patch
        nn.init.normal_(parameter, std=0.3)
    return tower


def weights_and_keys(attention: nn.MultiheadAttention, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention weights, a mean over heads [B, T, T], and the keys of each head [B, T, heads, D / heads]."""
    weights = attention(tokens, tokens, tokens, need_weights=True, average_attn_weights=True)[1]
    width = tokens.shape[-1]
    keys = tokens @ attention.in_proj_weight[width : 2 * width].T + attention.in_proj_bias[width : 2 * width]
    return weights, keys.unflatten(-1, (attention.num_heads, -1))


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["tok", "avg"])
def test_open_clips_penultimate_block(pooling: str) -> None:
    tower, pixels = open_clip_tower(pooling), torch.randn(2, 3, 32, 32)
    visual: Any = tower.visual
    tokens = visual._embeds(pixels)
    block = visual.transformer.resblocks[1]
    weights, keys = weights_and_keys(block.attn, block.ln_1(visual.transformer.resblocks[0](tokens)))
    features = tower(pixels, FIELDS)
    expected = weights[:, 0, 1:] if pooling == "tok" else weights[:, 1:, 1:].mean(1)
    torch.testing.assert_close(features.attention, expected)
    torch.testing.assert_close(features.keys, keys[:, 1:].mean(2))
    torch.testing.assert_close(features.patches, tower(pixels, frozenset({"patches"})).patches)
    assert not block.attn._forward_pre_hooks


@torch.no_grad()
@pytest.mark.parametrize(
    ("network", "pooling", "prefix"), [("test_vit", "tok", 1), ("test_vit", "avg", 1), ("test_vit3", "map", 1)]
)
def test_timms_penultimate_block(network: str, pooling: str, prefix: int) -> None:
    tower = build_tower(f"timm:{network}", pooling=pooling).eval()
    trunk: Any = tower.visual.trunk
    seen: list[torch.Tensor] = []
    trunk.blocks[-2].norm1.register_forward_hook(lambda *call: seen.append(call[2]))
    features = tower(torch.randn(2, 3, tower.image_size, tower.image_size), FIELDS)
    attention = trunk.blocks[-2].attn
    same = nn.MultiheadAttention(tower.width, attention.num_heads, batch_first=True)
    same.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.proj.weight,
            "out_proj.bias": attention.proj.bias,
        }
    )
    weights, keys = weights_and_keys(same, seen[0])
    expected = weights[:, 0, prefix:] if pooling == "tok" else weights[:, prefix:, prefix:].mean(1)
    torch.testing.assert_close(features.attention, expected)
    torch.testing.assert_close(features.keys, keys[:, prefix:].mean(2))


@torch.no_grad()
@pytest.mark.parametrize("family", [CLIPVisionConfig, SiglipVisionConfig, Dinov2Config])
def test_transformers_penultimate_block(family: Any) -> None:
    """Against transformers' own attention weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
    vision = family(**sizes, intermediate_size=48, attn_implementation="eager")
    preprocess = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    tower = TransformersTower({"transformers": vision.to_dict(), "preprocess_cfg": preprocess}).eval()
    visual: Any = tower.visual
    visual.set_attn_implementation("eager")
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.3)
    pixels = torch.randn(2, 3, 32, 32)
    features, weights = tower(pixels, FIELDS), visual(pixels, output_attentions=True).attentions[1].mean(1)
    classes = weights.shape[1] - 16
    expected = weights[:, 0, 1:] if classes else weights.mean(1)
    torch.testing.assert_close(features.attention, expected)
    assert features.keys.shape == (2, 16, 8)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:test_vit_relpos", "cannot be read"),
        ("timm:eva02_tiny_patch14_224", "cannot be read"),
        ("timm:test_resnet", "no attention"),
    ],
)
def test_a_tower_whose_attention_cannot_be_read_says_so(name: str, says: str) -> None:
    tower = build_tower(name).eval()
    size = tower.image_size
    with pytest.raises(UserError, match=says):
        tower(torch.zeros(1, 3, size, size), FIELDS)
