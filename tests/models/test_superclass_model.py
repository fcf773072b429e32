import pytest
import torch

from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.superclass import SuperClassModel
from vlmkit.models.vision_tower import VisionTower
from vlmkit.registry import VisionTowerFacts

FACTS = VisionTowerFacts("test", width=32, layers=2, heads=2, patch_size=8, image_size=16)


@torch.no_grad()
def test_logits_are_a_linear_map_of_normed_pooled_patches():
    model = SuperClassModel(VisionTower(config_from_facts(FACTS)), vocab_size=50)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    pooled = model.tower.pooled(images)
    centred = pooled - pooled.mean(1, keepdim=True)
    normed = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(model(images), normed @ model.head.weight.T, rtol=1e-4, atol=1e-5)


def test_the_head_starts_as_published_and_from_its_seed_alone():
    tower = VisionTower(config_from_facts(FACTS))
    state = torch.get_rng_state()
    head = SuperClassModel(tower, vocab_size=5000, seed=1).head
    assert torch.equal(torch.get_rng_state(), state)
    assert head.weight.std().item() == pytest.approx(32**-0.5, rel=0.02)
    assert head.bias.abs().max() == 0
    assert torch.equal(SuperClassModel(tower, 5000, seed=1).head.weight, head.weight)
    assert not torch.equal(SuperClassModel(tower, 5000, seed=2).head.weight, head.weight)
