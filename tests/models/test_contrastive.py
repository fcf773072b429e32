"""Contrastive models: open_clip's text tower, its shapes, and its directories read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import open_clip
import pytest
import torch

from vlmkit import registry
from vlmkit.config import TextTowerConfig
from vlmkit.errors import UserError
from vlmkit.models.contrastive import ContrastiveHead, ContrastiveModel, load_contrastive, published_text, text_config
from vlmkit.models.open_clip_layout import export_open_clip
from vlmkit.models.vision_tower import VisionTower, build_tower, tower_config

SMALL = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TEXTS = open_clip.SimpleTokenizer()(["a red square", "two circles, one above the other", ""])


def images_for(tower: VisionTower) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, tower.image_size, tower.image_size), dtype=torch.uint8, generator=g)


def on_meta(name: str) -> VisionTower:
    with torch.device("meta"):
        return VisionTower(tower_config(name))


OPEN_CLIP_NAMES = {model.lower(): model for model in open_clip.list_models()}
PAIRED = {
    **{name: OPEN_CLIP_NAMES.get(name.replace("convnext-", "convnext_")) for name in registry.VISION_TOWERS},
    **{name: name for name in ("RN101", "RN50x4", "ViT-H-14", "ViT-bigG-14", "ViT-S-16-alt", "convnext_base_w")},
    "timm:convnext_large": "convnext_large",
    "timm:vit_base_patch16_224": "ViT-B-16",
    "timm:test_vit": None,
}


@pytest.mark.parametrize("name", PAIRED)
def test_the_text_tower_is_the_one_open_clip_pairs_with_the_tower(name: str) -> None:
    published, peer = published_text(on_meta(name), name), PAIRED[name]
    if peer is None:
        assert published is None
    else:
        config = open_clip.get_model_config(peer)
        assert published == (config["text_cfg"], config["embed_dim"])
        assert text_config(1, TextTowerConfig(), published) == published


def test_the_registry_has_open_clip_counterparts_but_for_five_sizes() -> None:
    assert {name for name in registry.VISION_TOWERS if PAIRED[name] is None} == {
        *("vit-mini-8-64", "vit-ti-16", "vit-ti-14", "vit-s-14", "vit-b-14")
    }


def test_a_tower_that_is_read_back_has_the_text_tower_of_its_shape(tmp_path: Path) -> None:
    export_open_clip(build_tower("ConvNeXt-Tiny"), tmp_path)
    assert published_text(on_meta(str(tmp_path)), str(tmp_path)) == published_text(on_meta("ConvNeXt-Tiny"))


def test_settings_override_the_derived_shape_and_are_checked() -> None:
    text_cfg, embed_dim = text_config(128, TextTowerConfig())
    assert (text_cfg["width"], text_cfg["layers"], text_cfg["heads"], embed_dim) == (128, 2, 4, 128)
    text_cfg, embed_dim = text_config(768, TextTowerConfig(width=192, layers=3, embed_dim=64))
    assert (text_cfg["width"], text_cfg["layers"], text_cfg["heads"], embed_dim) == (192, 3, 3, 64)
    published = published_text(on_meta("ConvNeXt-Tiny"))
    text_cfg, embed_dim = text_config(768, TextTowerConfig(layers=6), published)
    assert (text_cfg["width"], text_cfg["layers"], embed_dim) == (512, 6, 1024)
    text_cfg, embed_dim = text_config(768, TextTowerConfig(width=256), published)
    assert (text_cfg["width"], text_cfg["heads"], embed_dim) == (256, 4, 256)
    with pytest.raises(UserError, match="heads"):
        text_config(768, TextTowerConfig(width=100, heads=7))


def test_fresh_weights_come_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    head = ContrastiveHead(32, SMALL, 16, "siglip", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    same, other = (ContrastiveHead(32, SMALL, 16, "siglip", seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(tensor, same[name]) for name, tensor in head.state_dict().items())
    assert not torch.equal(head.projection, other["projection"])
    assert head.logit_scale.item() == pytest.approx(math.log(10)) and head.logit_bias.item() == -10
    clip = ContrastiveHead(32, SMALL, 16, "clip")
    assert clip.logit_scale.exp().item() == pytest.approx(1 / 0.07) and clip.logit_bias is None


def make(
    name: str = "ViT-mini-8-64", kind: str = "clip", pooling: str | None = None, **config: object
) -> ContrastiveModel:
    tower = build_tower(name, seed=3, pooling=pooling)
    if config:
        tower = VisionTower({**tower.config, "model_cfg": {**tower.config["model_cfg"], **config}})
    quick_gelu = tower.config["model_cfg"]["quick_gelu"]
    head = ContrastiveHead(tower.width, SMALL, 24, kind, quick_gelu=quick_gelu, seed=3)  # type: ignore[arg-type]
    torch.nn.init.constant_(head.logit_scale, 3.25)
    return ContrastiveModel(tower, head).eval()


CASES = {
    "clip": make,
    "siglip": lambda: make(kind="siglip"),
    "class token": lambda: make(pooling="tok"),
    "quick gelu": lambda: make(quick_gelu=True),
    "convnet": lambda: make("timm:test_convnext"),
    "timm ViT": lambda: make("timm:test_vit"),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_an_exported_model_is_the_same_in_open_clip_and_read_back(case: str, tmp_path: Path) -> None:
    model = CASES[case]()
    export_open_clip(model.tower, tmp_path, text=model.head.text_part())
    pixel_values = images_for(model.tower)
    images, texts = model.encode_image(pixel_values), model.encode_text(TEXTS)
    for vectors in (images, texts):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)

    peer = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    normalised = model.tower._normalised(pixel_values)
    torch.testing.assert_close(peer.encode_image(normalised, normalize=True), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(peer.encode_text(TEXTS, normalize=True), texts, rtol=1e-4, atol=1e-5)
    assert peer.logit_scale.item() == 3.25 and (peer.logit_bias is None) == (case != "siglip")

    again = load_contrastive(tmp_path).eval()
    assert torch.equal(again.encode_image(pixel_values), images) and torch.equal(again.encode_text(TEXTS), texts)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_directory_without_a_readable_text_tower_is_refused(tmp_path: Path) -> None:
    model = make()
    export_open_clip(model.tower, tmp_path, text=model.head.text_part())
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["layers"] += 1
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="text tower"):
        load_contrastive(tmp_path)
    with pytest.raises(UserError):
        load_contrastive(tmp_path / "nowhere")
