from __future__ import annotations

import pytest
import torch

from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.superclass import SuperClassHead, pooled_and_patch_mean
from vlmkit.models.vision_tower import VisionTower, build_tower
from vlmkit.registry import VisionTowerFacts

FACTS = VisionTowerFacts("test", width=32, layers=2, heads=2, patch_size=8, image_size=16)
IMAGES = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_logits_are_a_linear_map_of_normed_features() -> None:
    head = SuperClassHead(32, vocab_size=50)
    features = torch.randn(4, 32)
    centred = features - features.mean(1, keepdim=True)
    normed = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head(features), normed @ head.head.weight.T, rtol=1e-4, atol=1e-5)


def test_the_head_starts_as_published_and_from_its_seed_alone() -> None:
    state = torch.get_rng_state()
    head = SuperClassHead(32, vocab_size=5000, seed=1).head
    assert torch.equal(torch.get_rng_state(), state)
    assert head.weight.std().item() == pytest.approx(32**-0.5, rel=0.02)
    assert head.bias.abs().max() == 0
    assert torch.equal(SuperClassHead(32, 5000, seed=1).head.weight, head.weight)
    assert not torch.equal(SuperClassHead(32, 5000, seed=2).head.weight, head.weight)


@torch.no_grad()
def test_a_class_token_tower_gives_its_patch_mean_beside_it() -> None:
    """The mean is what the same weights give under the pooling avg."""
    token, mean = (VisionTower(config_from_facts(FACTS, pooling=pooling)) for pooling in ("tok", "avg"))
    mean.load_state_dict(token.state_dict())
    pooled, patches = pooled_and_patch_mean(token, IMAGES)
    torch.testing.assert_close(pooled, token.pooled(IMAGES))
    torch.testing.assert_close(patches, mean.pooled(IMAGES))
    assert not torch.allclose(pooled, patches, atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT-mini-8-64", "timm:test_convnext"])
def test_other_towers_have_one_feature(name: str) -> None:
    tower = build_tower(name)
    images = torch.randint(0, 256, (2, 3, tower.image_size, tower.image_size), dtype=torch.uint8)
    pooled, patches = pooled_and_patch_mean(tower.eval(), images)
    assert torch.equal(pooled, patches)
    torch.testing.assert_close(pooled, tower.pooled(images))
