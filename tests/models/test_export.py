"""Exported towers against the libraries that load them: plain open_clip, transformers, timm."""

import json

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from vlmkit.errors import UserError
from vlmkit.models.export import export_timm, export_transformers
from vlmkit.models.open_clip_layout import TextPart, check_embed_dim, config_from_facts, export_open_clip
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower, build_tower
from vlmkit.registry import VisionTowerFacts

FACTS = VisionTowerFacts("test", width=32, layers=4, heads=2, patch_size=8, image_size=32)
TEXT_CFG = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TOWERS = [
    ("plain", "avg"),
    ("plain", "tok"),
    ("timm:test_vit", "avg"),
    ("timm:test_convnext", "avg"),
    ("timm:test_resnet", "avg"),
]


def tower_of(name, pooling):
    """A tower in the state of a trained one: every weight and statistic away from where it starts."""
    if name == "plain":
        with seeded(3):
            tower = VisionTower(config_from_facts(FACTS, pooling=pooling))
    else:
        tower = build_tower(name, seed=3, pooling=pooling)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        tower.pooled(pixels_for(tower))  # moves the running statistics of batch norms
    return tower.eval()


def pixels_for(tower):
    side = tower.image_size
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def text_part(width, embed_dim, bias=None):
    """A text tower as a trained model has it, and the model it was taken from."""
    vision = {"width": 8, "layers": 1, "head_width": 8, "patch_size": 8, "image_size": 8}
    with seeded(7):
        clip = open_clip.CLIP(embed_dim, vision, dict(TEXT_CFG)).eval()
        projection = torch.randn(width, embed_dim) / width**0.5
    weights = {name: tensor for name, tensor in clip.state_dict().items() if not name.startswith("visual.")}
    weights.pop("logit_scale")
    return TextPart(TEXT_CFG, weights, projection, torch.tensor(2.5), bias), clip


@torch.no_grad()
@pytest.mark.parametrize(("name", "pooling"), TOWERS)
@pytest.mark.parametrize("bias", [None, torch.tensor(-9.5)])
def test_open_clip_loads_both_towers(name, pooling, bias, tmp_path):
    tower = tower_of(name, pooling)
    part, source = text_part(tower.width, 24, bias)
    export_open_clip(tower, tmp_path, text=part)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    pixels, captions = pixels_for(tower), open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a red square", "two dogs"])
    torch.testing.assert_close(model.eval().encode_image(pixels), tower.pooled(pixels) @ part.projection)
    assert torch.equal(model.encode_text(captions), source.encode_text(captions))
    assert model.logit_scale == 2.5 and (model.logit_bias is None if bias is None else model.logit_bias == bias)
    assert preprocess.transforms[0].size == tower.image_size
    assert build_tower(tmp_path).fingerprint() == tower.fingerprint()


@torch.no_grad()
@pytest.mark.parametrize(("name", "pooling"), TOWERS)
def test_without_a_text_tower_open_clip_gives_the_pooled_features(name, pooling, tmp_path):
    tower = tower_of(name, pooling)
    export_open_clip(tower, tmp_path)
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    pixels = pixels_for(tower)
    assert torch.equal(model.encode_image(pixels), tower.pooled(pixels))
    assert json.loads((tmp_path / "open_clip_config.json").read_text()) == tower.config


@torch.no_grad()
def test_attention_pooling_is_exported_at_the_towers_width_alone(tmp_path):
    tower = tower_of("plain", "map")
    with pytest.raises(UserError, match=r"set objective\.text\.embed_dim to 32"):
        check_embed_dim(tower.config, 24)
    with pytest.raises(UserError, match="embed_dim must be the tower's width"):
        export_open_clip(tower, tmp_path, text=text_part(32, 24)[0])
    assert not list(tmp_path.iterdir())
    part, _ = text_part(32, 32)
    export_open_clip(tower, tmp_path, text=part)
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    pixels = pixels_for(tower)
    torch.testing.assert_close(model.encode_image(pixels), tower.pooled(pixels) @ part.projection)


def test_a_text_tower_with_a_missing_weight_is_not_written(tmp_path):
    tower = tower_of("plain", "avg")
    part, _ = text_part(32, 24)
    part.weights.pop("ln_final.bias")
    with pytest.raises(RuntimeError, match=r"ln_final\.bias"):
        export_open_clip(tower, tmp_path, text=part)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize(("pool", "pooling"), [("token", "tok"), ("avg", "avg")])
@pytest.mark.parametrize("proj", ["linear", "mlp", "none", ""])
def test_timm_towers_written_by_open_clip_keep_their_features(pool, pooling, proj, tmp_path):
    """The four ways in which open_clip projects a timm network: two build the network differently."""
    vision = {"timm_model_name": "test_vit", "timm_pool": pool, "timm_proj": proj, "image_size": 160}
    embed_dim = 64 if proj == "none" else 24
    with seeded(2):
        model = open_clip.CLIP(embed_dim, dict(vision), dict(TEXT_CFG)).eval()
    config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": TEXT_CFG}
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))

    tower = build_tower(tmp_path).eval()
    pixels, trunk = pixels_for(tower), model.visual.trunk
    pooled = trunk.forward_head(trunk.forward_features(pixels), pre_logits=True)
    assert tower.pooling == pooling and tower.width == 64
    assert torch.equal(tower.pooled(pixels), pooled)
    part, _ = text_part(64, 24)
    again = tmp_path / "again"
    again.mkdir()
    export_open_clip(tower, again, text=part)
    projected = open_clip.create_model(f"local-dir:{again}").eval().encode_image(pixels)
    torch.testing.assert_close(projected, pooled @ part.projection)
    assert build_tower(again).fingerprint() == tower.fingerprint()


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["avg", "tok"])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_transformers_gives_equal_hidden_states(pooling, quick_gelu, tmp_path):
    from transformers import CLIPImageProcessor, CLIPVisionModel

    tower = tower_of("plain", pooling)
    config = {**tower.config, "model_cfg": {**tower.config["model_cfg"], "quick_gelu": quick_gelu}}
    state, tower = tower.state_dict(), VisionTower(config).eval()
    tower.load_state_dict(state)
    export_transformers(tower, tmp_path)
    model = CLIPVisionModel.from_pretrained(tmp_path).eval()
    pixels = pixels_for(tower)
    output = model(pixels, output_hidden_states=True)
    features = tower(pixels, frozenset({"patches", "levels"}), levels=(0, 3))
    hidden = [states[:, 1:] for states in output.hidden_states]
    torch.testing.assert_close(hidden[-2], features.patches, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([hidden[1], hidden[4]], -1), features.levels, rtol=1e-5, atol=1e-5)
    final = model.post_layernorm(output.last_hidden_state)
    pooled = output.pooler_output if pooling == "tok" else final[:, 1:].mean(1)
    torch.testing.assert_close(pooled, tower.pooled(pixels), rtol=1e-5, atol=1e-5)
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    prepared = processor(images, return_tensors="pt").pixel_values
    torch.testing.assert_close(tower.pooled(prepared), tower.pooled(images), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("name", "pooling"), [*TOWERS, ("timm:test_vit", "tok")])
def test_timm_gives_equal_features(name, pooling, tmp_path):
    tower = tower_of(name, pooling)
    export_timm(tower, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    pixels = pixels_for(tower)
    torch.testing.assert_close(model(pixels), tower.pooled(pixels), rtol=1e-5, atol=1e-5)
    if name == "plain":
        patches = model.forward_intermediates(pixels, indices=[2], intermediates_only=True, output_fmt="NLC")[0]
        expected = tower(pixels, frozenset({"patches"})).patches
        torch.testing.assert_close(patches, expected, rtol=1e-5, atol=1e-5)
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, tower.image_size, tower.image_size)
    assert list(data["mean"]) == tower.config["preprocess_cfg"]["mean"] and data["interpolation"] == "bicubic"
    assert "license" not in json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_what_a_layout_cannot_hold_is_refused(tmp_path):
    attentional, network = tower_of("plain", "map"), tower_of("timm:test_vit", "avg")
    with pytest.raises(UserError, match="attentional_pool"):
        export_transformers(attentional, tmp_path)
    with pytest.raises(UserError, match="attentional_pool"):
        export_timm(attentional, tmp_path)
    with pytest.raises(UserError, match="a timm network as timm"):
        export_transformers(network, tmp_path)
    assert not list(tmp_path.iterdir())
