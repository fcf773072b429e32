"""QueCC, QueCC+ and TokenPacker against their definitions, written out as sums over patches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vlmkit.models.compressors import Compressor, CompressorShape, build_compressor
from vlmkit.models.compressors.base import legal_counts
from vlmkit.models.features import VisionFeatures

TEXT_WIDTH, HEADS = 12, 8
GRIDS, WIDTHS = (24, 16, 14, 8), (384, 768, 1024, 1152)
EVERY_COUNT = [(grid, count) for grid in GRIDS for count in legal_counts((grid, grid))]


def shape(grid: int, tokens: int, width: int = 16, layers: int = 24, asks: bool = True) -> CompressorShape:
    return CompressorShape(width, layers, 8, (grid, grid), TEXT_WIDTH if asks else None, (tokens,))


def build(name: str, given: CompressorShape) -> Compressor:
    """A module whose every weight is far from its initial value, in float64."""
    torch.manual_seed(0)
    module = build_compressor(name, given).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=2 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.5)
    return module


def features(given: CompressorShape, levels: int, batch: int = 2) -> VisionFeatures:
    generator = torch.Generator().manual_seed(1)
    patches, several = (
        torch.randn(batch, given.num_patches, count * given.vision_width, generator=generator, dtype=torch.float64)
        for count in (1, levels)
    )
    return VisionFeatures(given.grid, patches, several)


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def mlp(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    def linear(value: torch.Tensor, layer: int) -> torch.Tensor:
        weight, bias = weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"]
        return torch.einsum("bpi,oi->bpo", value, weight) + bias

    hidden = linear(x, 0)
    hidden = linear(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))), 2)
    return norm(hidden, weights[f"{name}.3.weight"], weights[f"{name}.3.bias"])


def members(grid: int, tokens: int) -> torch.Tensor:
    """The patches of each cell, found patch by patch: [N, k * k]."""
    per_side = math.isqrt(tokens)
    side = grid // per_side
    found: dict[int, list[int]] = {cell: [] for cell in range(tokens)}
    for patch in range(grid * grid):
        row, column = divmod(patch, grid)
        found[row // side * per_side + column // side].append(patch)
    return torch.tensor([found[cell] for cell in range(tokens)])


def attend(
    queries: torch.Tensor, levels: torch.Tensor, inside: torch.Tensor, w: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Attention of queries [B, N, D] to the patches of their cells."""
    width = queries.shape[-1]
    weights, biases = (
        w["attention.attention.in_proj_weight"].split(width),
        w["attention.attention.in_proj_bias"].split(width),
    )
    keys, values = (mlp(levels, w, f"attention.{part}_mlp")[:, inside] for part in ("key", "value"))
    q = (torch.einsum("bni,oi->bno", queries, weights[0]) + biases[0]).unflatten(-1, (HEADS, -1))
    k = (torch.einsum("bnpi,oi->bnpo", keys, weights[1]) + biases[1]).unflatten(-1, (HEADS, -1))
    v = (torch.einsum("bnpi,oi->bnpo", values, weights[2]) + biases[2]).unflatten(-1, (HEADS, -1))
    scores = torch.einsum("bnhe,bnphe->bnhp", q, k) / math.sqrt(width / HEADS)
    mixed = torch.einsum("bnhp,bnphe->bnhe", scores.softmax(-1), v).flatten(-2)
    return (
        torch.einsum("bni,oi->bno", mixed, w["attention.attention.out_proj.weight"])
        + w["attention.attention.out_proj.bias"]
    )


def quecc(module: Compressor, given: VisionFeatures, question: torch.Tensor | None, tokens: int) -> torch.Tensor:
    w = module.state_dict()
    told = given.patches
    assert told is not None and given.levels is not None
    if question is not None:
        projected = question @ w["question.0.weight"].T + w["question.0.bias"]
        term = norm(projected, w["question.1.weight"], w["question.1.bias"])
        told = told + (term * w.get("gate", torch.ones(()))).unsqueeze(1)
    inside = members(given.grid[0], tokens)
    kernel = w["query_conv.weight"].flatten(1)  # [D, k * k], one a channel
    queries = torch.einsum("bnpd,dp->bnd", mlp(told, w, "query_mlp")[:, inside], kernel) + w["query_conv.bias"]
    return attend(queries, given.levels, inside, w)


def halfway_weights(grid: int, cells: int) -> torch.Tensor:
    """Bilinear down-sampling along one side, [cells, grid]: each cell reads the two patches around its centre."""
    weights = torch.zeros(cells, grid, dtype=torch.float64)
    for cell in range(cells):
        centre = max(0.0, (cell + 0.5) * grid / cells - 0.5)
        low = math.floor(centre)
        weights[cell, low] += 1 - (centre - low)
        weights[cell, min(low + 1, grid - 1)] += centre - low
    return weights


def tokenpacker(module: Compressor, given: VisionFeatures, tokens: int) -> torch.Tensor:
    w, grid = module.state_dict(), given.grid[0]
    assert given.patches is not None and given.levels is not None
    along = halfway_weights(grid, math.isqrt(tokens))
    coarse = torch.einsum("yi,xj,bijc->byxc", along, along, given.patches.unflatten(1, given.grid)).flatten(1, 2)
    queries = norm(coarse @ w["query.0.weight"].T, w["query.1.weight"], w["query.1.bias"])
    return attend(queries, given.levels, members(grid, tokens), w)


def check(name: str, given: CompressorShape, batch: int = 2) -> None:
    module, tokens = build(name, given), given.num_visual_tokens
    seen = features(given, len(module.levels), batch)
    question = torch.randn(batch, TEXT_WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        if name == "tokenpacker":
            got, expected = module(seen, None, tokens), tokenpacker(module, seen, tokens)
        else:
            got, expected = module(seen, question, tokens), quecc(module, seen, question, tokens)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["quecc", "tokenpacker"])
@pytest.mark.parametrize(("grid", "tokens"), EVERY_COUNT)
def test_every_legal_count_is_attention_within_each_cell(name: str, grid: int, tokens: int) -> None:
    check(name, shape(grid, tokens))


@pytest.mark.parametrize("name", ["quecc", "tokenpacker"])
@pytest.mark.parametrize("width", [384, 1152])
def test_published_widths_are_attention_within_each_cell(name: str, width: int) -> None:
    check(name, shape(8, 16, width, layers=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quecc", "tokenpacker"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("grid", "tokens"), EVERY_COUNT)
def test_every_legal_count_at_every_published_width(name: str, grid: int, tokens: int, width: int) -> None:
    check(name, shape(grid, tokens, width), batch=1)


def test_quecc_without_a_question_forms_its_queries_from_patches_alone() -> None:
    given = shape(4, 4, asks=False)
    module = build("quecc", given)
    assert not module.conditioned and not any(name.startswith("question") for name in module.state_dict())
    seen = features(given, len(module.levels))
    torch.testing.assert_close(module(seen, None, 4), quecc(module, seen, None, 4))


def test_cells_of_one_patch_leave_the_question_nothing_to_choose() -> None:
    given = shape(4, 16)
    module = build("quecc", given)
    seen = features(given, len(module.levels))
    first, second = (module(seen, torch.randn(2, TEXT_WIDTH, dtype=torch.float64), 16) for _ in range(2))
    torch.testing.assert_close(first, second)


def test_quecc_plus_adds_the_mean_of_the_cell_to_gated_quecc() -> None:
    given = shape(4, 4)
    module, question = build("quecc+", given), torch.randn(2, TEXT_WIDTH, dtype=torch.float64)
    seen = features(given, len(module.levels))
    assert seen.patches is not None
    pooled = seen.patches[:, members(4, 4)].mean(dim=2)
    torch.testing.assert_close(module(seen, question, 4), pooled + quecc(module, seen, question, 4))


@pytest.mark.parametrize("tokens", [1, 4])
def test_fresh_quecc_plus_is_average_pooling_whatever_the_question_and_learns_from_there(tokens: int) -> None:
    torch.manual_seed(0)
    given = shape(4, tokens)
    module, pool = build_compressor("quecc+", given).double(), build_compressor("avgpool", given)
    seen, questions = features(given, len(module.levels)), torch.randn(2, 2, TEXT_WIDTH, dtype=torch.float64)
    for question in questions:
        assert torch.equal(module(seen, question, tokens), pool(seen, None, tokens))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (module(seen, questions[0], tokens) * torch.linspace(-1, 1, 16, dtype=torch.float64)).sum().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    assert not torch.allclose(module(seen, questions[0], tokens), module(seen, questions[1], tokens))


@pytest.mark.parametrize("name", ["quecc+", "tokenpacker"])
def test_linear_weights_start_truncated_normal(name: str) -> None:
    torch.manual_seed(0)
    module = build_compressor(name, shape(4, 4, width=64))
    for parameter_name, parameter in module.named_parameters():
        if "mlp.0.weight" in parameter_name or "mlp.2.weight" in parameter_name:
            assert 0.018 < parameter.std() < 0.022 and abs(parameter.mean()) < 0.002
        if "mlp.0.bias" in parameter_name:
            assert not parameter.any()


@pytest.mark.parametrize("tokens", [1, 36, 576])
def test_quecc_has_the_size_of_the_published_module(tokens: int) -> None:
    """21.0 to 21.6 M parameters for CLIP ViT-L/14-336 and a 4096-wide language model."""
    with torch.device("meta"):
        module = build_compressor("quecc", CompressorShape(1024, 24, 14, (24, 24), 4096, (tokens,)))
    assert module.levels == (11, 15, 21, 22)  # outputs after blocks 12, 16, 22 and 23 of 24
    assert 20.95e6 < sum(p.numel() for p in module.parameters()) < 21.65e6


@pytest.mark.parametrize("name", ["quecc", "tokenpacker"])
def test_a_width_that_eight_does_not_divide_fits_too(name: str) -> None:
    given = shape(4, 4, width=18)
    module = build_compressor(name, given).double()
    assert module(features(given, len(module.levels)), torch.randn(2, 12).double(), 4).shape == (2, 4, 18)


def test_one_tokenpacker_serves_every_count() -> None:
    several = CompressorShape(16, 24, 8, (8, 8), None, (1, 4, 16))
    module = build("tokenpacker", several)
    seen = features(several, len(module.levels))
    for tokens in (1, 4, 16, 64):
        torch.testing.assert_close(module(seen, None, tokens), tokenpacker(module, seen, tokens))
