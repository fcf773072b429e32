"""Compressors against naive loops over cells, and the token counts they accept."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.models.compressors import COMPRESSORS, CompressorShape, QueCC, build_compressor
from vlmkit.models.compressors.base import legal_counts, level_blocks
from vlmkit.models.features import VisionFeatures


def shape(grid: int = 4, tokens: int = 4, width: int = 16, layers: int = 6) -> CompressorShape:
    return CompressorShape(width, layers, 8, (grid, grid), 12, (tokens,))


def features(levels: int, grid: int = 4, width: int = 16) -> VisionFeatures:
    patches = torch.randn(2, grid * grid, width, dtype=torch.float64)
    return VisionFeatures((grid, grid), patches, torch.randn(2, grid * grid, levels * width, dtype=torch.float64))


def cell(values: torch.Tensor, row: int, column: int, side: int, grid: int) -> torch.Tensor:
    """The rows of one image's [P, C] that lie in a cell, found patch by patch."""
    inside = [r * grid + c for r in range(grid) for c in range(grid) if r // side == row and c // side == column]
    return values[inside]


def test_every_registered_compressor_is_built_by_its_name() -> None:
    assert set(COMPRESSORS) == set(registry.COMPRESSORS)
    for name in COMPRESSORS:
        assert build_compressor(name, shape()).conditioned == registry.compressor(name).conditioned


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_avgpool_is_the_mean_of_each_cell(tokens: int) -> None:
    given = features(levels=0)
    pooled = build_compressor("avgpool", shape(tokens=tokens))(given, None, tokens)
    per_side = math.isqrt(tokens)
    side = 4 // per_side
    assert given.patches is not None
    for image in range(2):
        for row in range(per_side):
            for column in range(per_side):
                expected = cell(given.patches[image], row, column, side, 4).mean(0)
                torch.testing.assert_close(pooled[image, row * per_side + column], expected)


def test_avgpool_of_the_precomputed_grid_is_the_same() -> None:
    compressor, given = build_compressor("avgpool", shape(tokens=4)), features(levels=0)
    ahead = compressor.precompute(given)
    assert ahead.grid == (2, 2)
    torch.testing.assert_close(compressor(ahead, None, 4), compressor(given, None, 4))


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_quecc_is_attention_within_each_cell(tokens: int) -> None:
    """Written out cell by cell and head by head from the definition."""
    torch.manual_seed(0)
    module = QueCC(shape(tokens=tokens)).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    given = features(levels=len(module.levels))
    question = torch.randn(2, 12, dtype=torch.float64)
    got = module(given, question, tokens)

    def norm(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    def mlp(x: torch.Tensor, block: torch.nn.Sequential) -> torch.Tensor:
        hidden = F.gelu(x @ block[0].weight.T + block[0].bias)
        return norm(hidden @ block[2].weight.T + block[2].bias, block[3])

    per_side = math.isqrt(tokens)
    side, width, heads = 4 // per_side, 16, 8
    weight, bias = module.attention.in_proj_weight, module.attention.in_proj_bias
    for image in range(2):
        told = norm(question[image] @ module.question.weight.T + module.question.bias, module.question_norm)
        queries = mlp(given.patches[image] + told, module.query_mlp)
        keys, values = mlp(given.levels[image], module.key_mlp), mlp(given.levels[image], module.value_mlp)
        for row in range(per_side):
            for column in range(per_side):
                kernel = module.query_conv.weight.reshape(width, side * side).T
                query = (cell(queries, row, column, side, 4) * kernel).sum(0) + module.query_conv.bias
                q = weight[:width] @ query + bias[:width]
                k = cell(keys, row, column, side, 4) @ weight[width : 2 * width].T + bias[width : 2 * width]
                v = cell(values, row, column, side, 4) @ weight[2 * width :].T + bias[2 * width :]
                outputs = []
                for head in range(heads):
                    part = slice(head * width // heads, (head + 1) * width // heads)
                    attention = torch.softmax(k[:, part] @ q[part] / math.sqrt(width / heads), dim=0)
                    outputs.append(attention @ v[:, part])
                expected = module.attention.out_proj(torch.cat(outputs))
                torch.testing.assert_close(got[image, row * per_side + column], expected)


@pytest.mark.parametrize("tokens", [1, 36, 576])
def test_quecc_has_the_size_of_the_published_module(tokens: int) -> None:
    """21.0 to 21.6 M parameters for CLIP ViT-L/14-336 and a 4096-wide language model."""
    with torch.device("meta"):
        module = QueCC(CompressorShape(1024, 24, 14, (24, 24), 4096, (tokens,)))
    assert module.levels == (11, 15, 21, 22)  # outputs after blocks 12, 16, 22 and 23 of 24
    assert 20.95e6 < sum(p.numel() for p in module.parameters()) < 21.65e6


def test_quecc_fits_a_width_that_eight_does_not_divide() -> None:
    module = QueCC(shape(width=18))
    given = VisionFeatures((4, 4), torch.randn(1, 16, 18), torch.randn(1, 16, 18 * len(module.levels)))
    assert module(given, torch.randn(1, 12), 4).shape == (1, 4, 18)


@pytest.mark.parametrize("layers", [2, 3, 4, 12, 24, 40])
def test_levels_are_distinct_blocks_before_the_last(layers: int) -> None:
    blocks = level_blocks(QueCC.level_fractions, layers)
    assert list(blocks) == sorted(set(blocks)) and blocks[0] >= 0 and blocks[-1] <= layers - 2


def test_legal_counts_are_those_of_the_paper() -> None:
    assert legal_counts((24, 24)) == [1, 4, 9, 16, 36, 64, 144, 576]
    assert legal_counts((4, 6)) == [6, 24]


@pytest.mark.parametrize("name", ["avgpool", "quecc"])
def test_a_count_that_does_not_tile_names_the_legal_ones_and_the_image_size(name: str) -> None:
    with pytest.raises(UserError, match=r"1, 4, 16, 64.*image size of 72 pixels for 9"):
        build_compressor(name, shape(grid=8, tokens=9))
    with pytest.raises(UserError, match="7 is not a square"):
        build_compressor(name, shape(grid=8, tokens=7))


def test_quecc_refuses_a_count_it_was_not_built_for() -> None:
    module = QueCC(shape(tokens=4))
    with pytest.raises(UserError, match="built for 4"):
        module(
            VisionFeatures((4, 4), torch.randn(1, 16, 16), torch.randn(1, 16, 16 * len(module.levels))),
            torch.randn(1, 12),
            16,
        )
