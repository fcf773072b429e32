import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import config_from_facts, export_open_clip
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower, build_tower, tower_config
from vlmkit.registry import CLIP_MEAN, CLIP_STD, VISION_TOWERS, VisionTowerFacts
from vlmkit.runs import RunDirectory

FACTS = VisionTowerFacts("test", width=32, layers=4, heads=2, patch_size=8, image_size=32)


@pytest.fixture
def tower():
    with seeded(3):
        return VisionTower(config_from_facts(FACTS)).eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(images):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (images / 255.0 - mean) / std


def block_outputs(tower, pixels):
    """Outputs of all blocks and of the final norm, caught with hooks during a whole forward pass."""
    caught = []
    modules = [*tower.visual.transformer.resblocks, tower.visual.ln_post]
    handles = [m.register_forward_hook(lambda _m, _i, output: caught.append(output)) for m in modules]
    tower.visual(pixels)
    for handle in handles:
        handle.remove()
    return caught[:-1], caught[-1]


@torch.no_grad()
def test_features_are_those_of_the_named_blocks_without_the_class_token(tower, images):
    blocks, final = block_outputs(tower, normalised(images))
    features = tower(images, frozenset({"patches", "levels"}), levels=(2, 0))
    torch.testing.assert_close(features.patches, blocks[2][:, 1:])
    torch.testing.assert_close(features.levels, torch.cat([blocks[2][:, 1:], blocks[0][:, 1:]], dim=2))
    assert features.grid == (4, 4) and features.patches.shape == (3, 16, 32)
    torch.testing.assert_close(tower.pooled(images), final[:, 1:].mean(1))


@torch.no_grad()
def test_only_required_features_are_given(tower, images):
    features = tower(images, frozenset({"levels"}), levels=(3,))
    assert features.patches is None and features.levels.shape == (3, 16, 32)
    assert tower(images, frozenset({"patches"})).levels is None


@torch.no_grad()
def test_float_images_count_as_normalised_and_weights_set_the_dtype(tower, images):
    torch.testing.assert_close(tower.pooled(images), tower.pooled(normalised(images)))
    exact = tower.pooled(images)
    half = tower.to(torch.bfloat16).pooled(images)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)


def test_facts_are_the_registrys(tower):
    assert (tower.width, tower.num_layers, tower.patch_size, tower.image_size) == (32, 4, 8, 32)
    assert tower.grid == (4, 4) and len(tower.blocks()) == 4 and tower.pooling == "avg"
    for facts in VISION_TOWERS.values():
        with torch.device("meta"):
            built = VisionTower(config_from_facts(facts))
        shape = (built.width, built.num_layers, built.patch_size, built.image_size)
        assert shape == (facts.width, facts.layers, facts.patch_size, facts.image_size), facts.name
        assert sum(p.numel() for p in built.parameters()) == facts.num_params, facts.name


VITS = {"Ti": (192, 12), "S": (384, 12), "B": (768, 12), "L": (1024, 24)}


@pytest.mark.parametrize("patch_size", [16, 14])
@pytest.mark.parametrize("size", VITS)
def test_vits_of_every_size_with_both_patches(size, patch_size):
    with torch.device("meta"):
        built = VisionTower(tower_config(f"ViT-{size}-{patch_size}"))
    assert (built.width, built.num_layers, built.patch_size) == (*VITS[size], patch_size)
    assert built.grid == (224 // patch_size,) * 2
    pixels = torch.empty(2, 3, 224, 224, device="meta")
    assert built.pooled(pixels).shape == (2, built.width)
    assert built(pixels, frozenset({"patches"})).patches.shape == (2, (224 // patch_size) ** 2, built.width)


@pytest.mark.parametrize(("name", "blocks"), [("hrnet_w18_small", 4), ("hrnet_w18", 12)])
def test_hrnets_name_their_blocks_otherwise(name, blocks):
    with torch.device("meta"):
        built = VisionTower(tower_config(f"timm:{name}"))
    assert built.num_layers == blocks and len({id(block) for block in built.blocks()}) == blocks


@torch.no_grad()
def test_poolings_are_the_class_token_and_one_query_that_attends(images):
    tok, attentional = (VisionTower(config_from_facts(FACTS, pooling=pooling)).eval() for pooling in ("tok", "map"))
    _, final = block_outputs(tok, normalised(images))
    torch.testing.assert_close(tok.pooled(images), final[:, 0])

    blocks, _ = block_outputs(attentional, normalised(images))
    pool, width = attentional.visual.attn_pool, 32
    tokens, query = pool.ln_k(blocks[-1]).double(), pool.ln_q(pool.query).double()
    weights, biases = pool.attn.in_proj_weight.double(), pool.attn.in_proj_bias.double()
    inputs = zip((query, tokens, tokens), weights.chunk(3), biases.chunk(3), strict=True)
    q, k, v = (F.linear(x, weight, bias) for x, weight, bias in inputs)
    heads = []
    for head in range(2):
        part = slice(head * width // 2, (head + 1) * width // 2)
        scores = torch.einsum("qd,btd->bqt", q[:, part], k[..., part]) / (width // 2) ** 0.5
        heads.append((scores.softmax(-1) @ v[..., part])[:, 0])
    out = F.linear(torch.cat(heads, -1), pool.attn.out_proj.weight.double(), pool.attn.out_proj.bias.double())
    expected = attentional.visual.ln_post(out.float())
    torch.testing.assert_close(attentional.pooled(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["avg", "tok"])
def test_a_timm_vit_gives_what_a_vit_gives(pooling):
    tower = build_tower("timm:test_vit", pooling=pooling).eval()
    trunk, pixels = tower.visual.trunk, torch.randn(2, 3, 160, 160)
    x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
    outputs = [x := block(x) for block in trunk.blocks]
    features = tower(pixels, frozenset({"patches", "levels"}), levels=(0, 3))
    assert (tower.grid, tower.num_layers, tower.pooling) == ((10, 10), 6, pooling)
    torch.testing.assert_close(features.patches, outputs[4][:, 1:])
    torch.testing.assert_close(features.levels, torch.cat([outputs[0][:, 1:], outputs[3][:, 1:]], dim=2))
    final = trunk.norm(outputs[-1])
    torch.testing.assert_close(tower.pooled(pixels), final[:, 1:].mean(1) if pooling == "avg" else final[:, 0])


@torch.no_grad()
@pytest.mark.parametrize(("name", "blocks"), [("timm:test_convnext", 9), ("timm:test_resnet", 4)])
def test_a_convnets_patches_are_its_last_feature_map(name, blocks):
    tower = build_tower(name, image_size=64).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    patches = tower(pixels, frozenset({"patches"})).patches
    expected = tower.visual.trunk.forward_intermediates(normalised(pixels), indices=1, intermediates_only=True)[0]
    assert (tower.grid, tower.patch_size, tower.num_layers, tower.pooling) == ((2, 2), 32, blocks, "avg")
    torch.testing.assert_close(patches, expected.flatten(2).transpose(1, 2))
    pooled = patches.mean(1)
    if "convnext" in name:  # its norm comes after the mean
        pooled = F.layer_norm(pooled, (tower.width,), eps=1e-5)
    torch.testing.assert_close(tower.pooled(pixels), pooled)
    with pytest.raises(UserError, match="only ViTs give features of several levels"):
        tower(pixels, frozenset({"levels"}), levels=(0,))


def test_towers_by_the_names_of_open_clip_and_timm():
    def describe(name, **options):
        config = tower_config(name, **options)
        with torch.device("meta"):
            tower = VisionTower(config)
        inside = config["model_cfg"]["vision_cfg"].get("timm_model_name")
        return inside, tower.width, tower.num_layers, tower.grid, tower.pooling

    assert describe("vit-b-16-siglip") == ("vit_base_patch16_siglip_224", 768, 12, (14, 14), "map")
    assert describe("ViT-S-32", image_size=256) == (None, 384, 12, (8, 8), "avg")
    assert describe("coca_ViT-B-32") == (None, 768, 12, (7, 7), "map")
    assert describe("convnext_tiny", image_size=288) == ("convnext_tiny", 768, 18, (9, 9), "avg")
    assert describe("RN50") == ("resnet50_clip_gap", 2048, 16, (7, 7), "avg")
    assert describe("RN101-quickgelu", pooling="map") == ("resnet101_clip", 2048, 33, (7, 7), "map")
    assert describe("timm:vit_small_patch16_224", pooling="tok") == ("vit_small_patch16_224", 384, 12, (14, 14), "tok")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("ViT-B-16-SigLIB", {}, "did you mean ViT-B-16-SigLIP"),
        ("timm:vit_smal_patch16_224", {}, "did you mean vit_small_patch16_224"),
        ("timm:test_vit.r160_in1k", {}, "pretrained weights, .* start from fresh ones; give timm:test_vit"),
        ("hf-hub:timm/vit", {}, "hf download timm/vit --local-dir DIR"),
        ("timm:test_vit", {"image_size": 224}, "takes images of 160 pixels alone"),
        ("timm:test_vit", {"pooling": "map"}, "no pooling map; set tower.pooling to avg or tok"),
        ("timm:test_convnext", {"pooling": "tok"}, "no pooling tok; set tower.pooling to avg"),
        ("timm:test_convnext", {"image_size": 100}, "ask for 96 or 128"),
        ("timm:mobilenetv3_small_050", {}, "does more than pool"),
    ],
)
def test_names_poolings_and_sizes_that_do_not_exist_are_refused(name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        build_tower(name, **options)


@pytest.mark.parametrize("name", ["ViT-mini-8-64", "timm:test_vit", "timm:test_convnext", "timm:test_resnet"])
def test_gradient_checkpointing_changes_no_gradient(name):
    def gradients(on):
        tower = build_tower(name)
        tower.set_gradient_checkpointing(on)
        calls = []
        tower.blocks()[0].register_forward_pre_hook(lambda *_: calls.append(1))
        pixels = torch.randn(4, 3, tower.image_size, tower.image_size, generator=torch.Generator().manual_seed(0))
        loss = tower.pooled(pixels).pow(3).sum()
        loss.backward()
        return loss, {name: p.grad for name, p in tower.named_parameters()}, len(calls)

    loss, plain, calls = gradients(False)
    again, checkpointed, repeated = gradients(True)
    assert (calls, repeated) == (1, 2)
    assert torch.equal(loss, again)
    torch.testing.assert_close(checkpointed, plain)


def test_a_wrong_image_size_is_named(tower):
    with pytest.raises(UserError, match="32 x 32"):
        tower.pooled(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))


def test_fresh_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_tower("vit-MINI-8-64", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert build_tower("ViT-mini-8-64", seed=5).fingerprint() == first.fingerprint()
    assert build_tower("ViT-mini-8-64", seed=6).fingerprint() != first.fingerprint()


def test_fingerprint_sees_one_weight_and_the_normalisation(tower):
    before = tower.fingerprint()
    tower.config["preprocess_cfg"]["mean"][0] += 1e-3
    assert tower.fingerprint() != before
    tower.config["preprocess_cfg"]["mean"][0] = CLIP_MEAN[0]
    assert tower.fingerprint() == before
    with torch.no_grad():
        tower.visual.ln_post.bias[3] += 1e-6
    assert tower.fingerprint() != before


@torch.no_grad()
def test_open_clip_loads_the_export_with_equal_outputs(tower, images, tmp_path):
    import open_clip

    export_open_clip(tower, tmp_path)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert torch.equal(model.eval().encode_image(normalised(images)), tower.pooled(normalised(images)))
    assert tuple(model.visual.preprocess_cfg["mean"]) == CLIP_MEAN
    assert tuple(model.visual.preprocess_cfg["std"]) == CLIP_STD
    assert model.visual.image_size == (32, 32)
    assert preprocess.transforms[0].size == 32
    text = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a red square"])
    assert model.encode_text(text).shape == (1, 32)


def test_a_tower_is_rebuilt_from_its_export_and_from_a_run(tower, tmp_path):
    export_open_clip(tower, tmp_path)
    assert build_tower(tmp_path).fingerprint() == tower.fingerprint()

    run = RunDirectory(tmp_path / "run")
    run.prepare(PretrainRecipe(), {}, {})
    with pytest.raises(UserError, match="not finished"):
        build_tower(run.path)
    with run.writing_model() as scratch:
        export_open_clip(tower, scratch)
    assert build_tower(run.path).fingerprint() == tower.fingerprint()


@torch.no_grad()
def test_another_image_size_interpolates_positions_as_open_clip_does(tower, tmp_path):
    import open_clip

    export_open_clip(tower, tmp_path)
    resized = build_tower(tmp_path, image_size=48)
    peer = open_clip.create_model(f"local-dir:{tmp_path}", force_image_size=48).eval()
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    assert resized.grid == (6, 6) and resized.fingerprint() != tower.fingerprint()
    torch.testing.assert_close(resized.pooled(pixels), peer.encode_image(pixels))
    assert build_tower("ViT-mini-8-64", image_size=96).grid == (12, 12)


@torch.no_grad()
def test_a_plain_clip_written_by_open_clip_gives_its_patches(tmp_path):
    import open_clip

    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"].update(image_size=64, layers=2, width=64, head_width=32)
    config["text_cfg"].update(layers=1, width=16, heads=2)
    config["quick_gelu"] = True
    model = open_clip.CLIP(**config).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))

    tower = build_tower(tmp_path)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = model.visual.forward_intermediates((images / 255 - 0.5) / 0.25, indices=[0], output_fmt="NLC")
    patches = tower(images, frozenset({"patches"})).patches
    torch.testing.assert_close(patches, expected["image_intermediates"][0])


@pytest.mark.parametrize(
    ("name", "pooling"), [("ViT-mini-8-64", "map"), ("ViT-mini-8-64", "tok"), ("timm:test_vit", "tok")]
)
def test_the_pooling_goes_with_the_weights(name, pooling, tmp_path):
    tower = build_tower(name, pooling=pooling)
    export_open_clip(tower, tmp_path)
    again = build_tower(tmp_path)
    assert again.pooling == pooling and again.fingerprint() == tower.fingerprint()
    assert tower_config(tmp_path, pooling=pooling) == tower.config
    with pytest.raises(UserError, match=f"trained with the pooling {pooling}"):
        build_tower(tmp_path, pooling="avg")


def test_the_attention_pooling_of_a_resnet_is_read_back(tmp_path):
    config = tower_config("RN50", pooling="map")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert tower_config(tmp_path) == tower_config(tmp_path, pooling="map") == config
    with pytest.raises(UserError, match="trained with the pooling map"):
        tower_config(tmp_path, pooling="avg")


def test_names_and_runs_that_are_no_tower_are_refused(tmp_path):
    with pytest.raises(UserError, match="ViT-B-16"):
        build_tower("ViT-B-15")
    with pytest.raises(UserError, match="not a run directory"):
        build_tower(str(tmp_path / "nowhere"))
    run = RunDirectory(tmp_path / "vlm")
    run.prepare(VLMRecipe(), {}, {})
    with pytest.raises(UserError, match="train-vlm run"):
        build_tower(run.path)
    with pytest.raises(UserError, match="ask for 56 or 64"):
        build_tower("ViT-mini-8-64", image_size=60)


def test_damaged_directories_are_refused(tower, tmp_path):
    export_open_clip(tower, tmp_path)
    config, weights = tmp_path / "open_clip_config.json", tmp_path / "open_clip_model.safetensors"
    raw, state = json.loads(config.read_text()), load_file(weights)

    save_file({**state, "visual.conv1.weight": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match="do not fit"):
        build_tower(tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        build_tower(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        build_tower(tmp_path)

    raw["model_cfg"]["vision_cfg"]["patch_dropout"] = 0.5
    config.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="patch_dropout in vision_cfg"):
        build_tower(tmp_path)
    config.write_text("{")
    with pytest.raises(UserError, match="not a readable open_clip configuration"):
        build_tower(tmp_path)
