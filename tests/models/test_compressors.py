"""Compressors: each against a plain reference, what they refuse, and what a feature cache keeps of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.models.compressors import COMPRESSORS, Compressor, CompressorShape, build_compressor, shrunken_image_size
from vlmkit.models.compressors.base import legal_counts
from vlmkit.models.compressors.resampler import sine_positions
from vlmkit.models.features import VisionFeatures

ALL = sorted(COMPRESSORS)
ANY_COUNT = ["prune", "resampler"]
TILING = ["avgpool", "pixel_shuffle", "quecc", "quecc+", "tokenpacker"]


def shape(*tokens: int, grid: int = 4, width: int = 16, layers: int = 6) -> CompressorShape:
    return CompressorShape(width, layers, 8, (grid, grid), 12, tokens or (4,))


def build(name: str, given: CompressorShape) -> Compressor:
    torch.manual_seed(0)
    return build_compressor(name, given).double()


def features(module: Compressor) -> VisionFeatures:
    """What a tower gives: patches are among the levels where the penultimate block is one of them."""
    given = module.shape
    generator = torch.Generator().manual_seed(1)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(2, given.num_patches, *sizes, generator=generator, dtype=torch.float64)

    blocks = {block: draw(given.vision_width) for block in {given.vision_layers - 2, *module.levels}}
    return VisionFeatures(
        given.grid,
        patches=blocks[given.vision_layers - 2],
        levels=torch.cat([blocks[block] for block in module.levels], -1) if module.levels else None,
        attention=draw().softmax(-1),
        keys=draw(given.vision_width // 2),
    )


def count_for(name: str) -> int:
    return 16 if name in ("none", "downsample") else 4


def test_every_registered_compressor_is_built_by_its_name_and_is_what_the_registry_says() -> None:
    assert set(COMPRESSORS) == set(registry.COMPRESSORS)
    for name in COMPRESSORS:
        module, facts = build(name, shape(count_for(name))), registry.compressor(name)
        assert (module.conditioned, module.elastic) == (facts.conditioned, facts.elastic)


@pytest.mark.parametrize("layers", [6, 40])
@pytest.mark.parametrize("name", ALL)
def test_tokens_of_the_cached_features_are_those_of_the_features(name: str, layers: int) -> None:
    module = build(name, shape(count_for(name), layers=layers))
    seen, question = features(module), torch.randn(2, 12, dtype=torch.float64)
    cached = module.to_cache(seen)
    assert cached.shape[1:] == module.cached_shape
    tokens = module(seen, question, count_for(name))
    assert tokens.shape == (2, count_for(name), 16)
    torch.testing.assert_close(module(module.from_cache(cached), question, count_for(name)), tokens)


def test_patches_that_are_a_level_are_cached_once_and_equal_content_has_equal_words() -> None:
    in_levels, beside = build("quecc", shape(layers=24)), build("quecc", shape(layers=40))
    assert in_levels.cached_shape == (16, 4 * 16) and beside.cached_shape == (16, 5 * 16)
    shared = {build(name, shape(n, layers=24)).cached_content for name in ("quecc", "tokenpacker") for n in (1, 4)}
    assert shared == {in_levels.cached_content}
    contents = [build(name, shape(count_for(name))).cached_content for name in ("none", "avgpool", "quecc", "prune")]
    assert len({*contents}) == 4
    assert build("avgpool", shape(1, 4)).cached_content == build("avgpool", shape(4)).cached_content


@pytest.mark.parametrize("name", sorted(name for name in ALL if registry.compressor(name).elastic))
def test_an_elastic_compressor_serves_each_of_its_counts_from_one_cache(name: str) -> None:
    counts = (1, 4, 9, 36)
    module = build(name, shape(*counts, grid=6))
    seen = features(module)
    ahead = module.from_cache(module.to_cache(seen))
    for count in counts:
        tokens = module(ahead, None, count)
        assert tokens.shape == (2, count, 16)
        torch.testing.assert_close(tokens, module(seen, None, count))


def test_several_counts_need_an_elastic_compressor() -> None:
    with pytest.raises(UserError, match=r"1, 4 at once.*avgpool, tokenpacker, resampler, prune"):
        build("quecc", shape(1, 4))


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_avgpool_is_the_mean_of_each_cell(tokens: int) -> None:
    module = build("avgpool", shape(tokens))
    seen, per_side = features(module), math.isqrt(tokens)
    assert seen.patches is not None
    pooled, side = module(seen, None, tokens), 4 // per_side
    for token in range(tokens):
        inside = [r * 4 + c for r in range(4) for c in range(4) if r // side * per_side + c // side == token]
        torch.testing.assert_close(pooled[:, token], seen.patches[:, inside].mean(1))


def test_avgpool_caches_the_coarsest_grid_that_holds_every_count() -> None:
    assert build("avgpool", shape(4, 9, 36, grid=6)).cached_shape == (36, 16)
    assert build("avgpool", shape(4, 9, grid=6)).cached_shape == (36, 16)  # sides 2 and 3 meet at 6
    assert build("avgpool", shape(1, 4, 16, grid=8)).cached_shape == (16, 16)


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_pixel_shuffle_is_torchs_pixel_unshuffle_and_a_linear_map(tokens: int) -> None:
    module = build("pixel_shuffle", shape(tokens))
    seen = features(module)
    assert seen.patches is not None
    image = seen.patches.transpose(1, 2).unflatten(2, (4, 4))
    deep = F.pixel_unshuffle(image, 4 // math.isqrt(tokens)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(module(seen, None, tokens), deep @ module.get_parameter("linear.weight").T)


@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_resampler_is_a_softmax_over_all_patches(tokens: int) -> None:
    module = build("resampler", shape(16))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    seen, w = features(module), module.state_dict()
    assert seen.patches is not None
    queries = F.layer_norm(w["queries"][:tokens], (16,), w["query_norm.weight"], w["query_norm.bias"], 1e-6)
    values = F.layer_norm(seen.patches, (16,), w["patch_norm.weight"], w["patch_norm.bias"], 1e-6)
    positions = torch.tensor(
        [
            [f(p * 10000 ** (-i / 4)) for p in (column, row) for f in (math.sin, math.cos) for i in range(4)]
            for row in range(4)
            for column in range(4)
        ],
        dtype=torch.float64,
    )
    weights, biases = w["attention.in_proj_weight"].split(16), w["attention.in_proj_bias"].split(16)
    q, k, v = (x @ m.T + b for x, m, b in zip((queries, values + positions, values), weights, biases, strict=True))
    heads = [
        torch.softmax(q[:, h : h + 2] @ k[:, :, h : h + 2].mT / math.sqrt(2), -1) @ v[:, :, h : h + 2]
        for h in range(0, 16, 2)
    ]
    expected = torch.cat(heads, -1) @ w["attention.out_proj.weight"].T + w["attention.out_proj.bias"]
    torch.testing.assert_close(module(seen, None, tokens), expected)


def test_positions_of_a_width_that_four_does_not_divide_end_in_zeros() -> None:
    positions = sine_positions((2, 3), 18)
    assert positions.shape == (6, 18) and not positions[:, 16:].any()
    torch.testing.assert_close(positions[:, :16], sine_positions((2, 3), 16))


@pytest.mark.parametrize("tokens", [1, 4, 13, 36])
def test_prune_keeps_the_attended_and_merges_the_rest_by_key(tokens: int) -> None:
    """VisionZip's rule, patch by patch."""
    module = build("prune", shape(tokens, grid=6))
    seen = features(module)
    got = module(seen, None, tokens)
    assert seen.patches is not None and seen.attention is not None and seen.keys is not None
    contextual = {1: 0, 4: 1, 13: 2, 36: 6}[tokens]
    for image in range(2):
        order = sorted(range(36), key=lambda patch: -float(seen.attention[image, patch]))
        dominant = sorted(order[: tokens - contextual])
        rest = sorted(order[tokens - contextual :])
        targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
        joined: dict[int, list[int]] = {target: [] for target in targets}
        for patch in (patch for patch in rest if targets and patch not in targets):
            cosines = [F.cosine_similarity(seen.keys[image, patch], seen.keys[image, t], dim=0) for t in targets]
            joined[targets[max(range(len(targets)), key=lambda i: float(cosines[i]))]].append(patch)
        rows = [seen.patches[image, patch] for patch in dominant]
        for target, others in joined.items():
            mean = seen.patches[image, others].mean(0) if others else 0
            rows.append(seen.patches[image, target] + mean)
        torch.testing.assert_close(got[image], torch.stack(rows))


def test_prune_refuses_a_count_that_its_cached_tokens_are_not() -> None:
    module = build("prune", shape(1, 4))
    with pytest.raises(UserError, match="pruned to 1, 4 visual tokens, not to 2"):
        module(module.from_cache(module.to_cache(features(module))), None, 2)


def test_prune_splits_64_tokens_as_visionzip_does() -> None:
    module = build("prune", shape(64, grid=12))
    seen = features(module)
    tokens = module(seen, None, 64)
    assert seen.patches is not None
    kept = (tokens[0, :, None] == seen.patches[0]).all(-1).any(-1)
    assert kept.tolist() == [True] * 54 + [False] * 10


@pytest.mark.parametrize("name", ["none", "downsample"])
def test_every_patch_is_a_token(name: str) -> None:
    module = build(name, shape(16))
    seen = features(module)
    assert module(seen, None, 16) is seen.patches and not list(module.parameters())
    with pytest.raises(UserError, match="ask for 16, not 4"):
        build(name, shape(4))


def test_the_shrunken_image_has_exactly_so_many_patches() -> None:
    assert [shrunken_image_size([n], (24, 24), 14) for n in (1, 36, 576)] == [14, 84, 336]
    for count in (5, 25):
        with pytest.raises(UserError, match="1, 4, 9, 16: choose one"):
            shrunken_image_size([count], (4, 4), 14)
    with pytest.raises(UserError, match="1, 4 tokens at once"):
        shrunken_image_size([1, 4], (4, 4), 14)


@pytest.mark.parametrize("layers", [2, 3, 4, 12, 24, 40])
def test_levels_are_distinct_blocks_before_the_last(layers: int) -> None:
    blocks = registry.level_blocks(registry.PAPER_LEVELS, layers)
    assert list(blocks) == sorted(set(blocks)) and blocks[0] >= 0 and blocks[-1] <= layers - 2


def test_legal_counts_are_those_of_the_paper() -> None:
    assert legal_counts((24, 24)) == [1, 4, 9, 16, 36, 64, 144, 576]
    assert legal_counts((4, 6)) == [6, 24]


@pytest.mark.parametrize("name", TILING)
def test_a_count_that_does_not_tile_names_the_legal_ones_and_the_image_size(name: str) -> None:
    with pytest.raises(UserError, match=r"1, 4, 16, 64.*image size of 72 pixels for 9"):
        build(name, shape(9, grid=8))
    with pytest.raises(UserError, match="7 is not a square"):
        build(name, shape(7, grid=8))


@pytest.mark.parametrize("name", ANY_COUNT)
def test_a_count_beyond_the_patches_names_the_range(name: str) -> None:
    with pytest.raises(UserError, match="17 visual tokens cannot be made of 16 patches; the legal counts are 1 to 16"):
        build(name, shape(17))


@pytest.mark.parametrize(
    ("name", "says"), [("quecc", "built for 4"), ("pixel_shuffle", "built for 4"), ("resampler", "1 to 4")]
)
def test_a_module_refuses_a_count_it_was_not_built_for(name: str, says: str) -> None:
    module = build(name, shape(4))
    with pytest.raises(UserError, match=says):
        module(features(module), torch.randn(2, 12, dtype=torch.float64), 16)
