"""The losses of CLIP and SigLIP against dense float64 formulas; on ranks, see tests/tasks/test_objective_worlds.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn.functional import normalize

from vlmkit.losses import contrastive
from vlmkit.losses.contrastive import contrastive_loss

Formula = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def clip(images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    logits = log_scale.exp() * images @ texts.T
    return -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).sum() / 2


def siglip(images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    logits = log_scale.exp() * images @ texts.T + bias
    signs = 2 * torch.eye(len(images), dtype=logits.dtype) - 1
    return (-signs * logits).exp().log1p().sum()


def inputs(pairs: int = 7) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    images, texts = (normalize(torch.randn(pairs, 5, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    tensors = [images, texts, torch.tensor([1.7], dtype=torch.float64), torch.tensor([-2.5], dtype=torch.float64)]
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize(("kind", "formula"), [("clip", clip), ("siglip", siglip)])
@pytest.mark.parametrize("block_rows", [3, 7, 1024])
def test_loss_and_gradients_are_those_of_the_dense_formula(
    kind: str, formula: Formula, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive, "BLOCK_ROWS", block_rows)
    tensors = inputs()
    used = tensors if kind == "siglip" else tensors[:3]
    loss, expected = contrastive_loss(kind, *used), formula(*tensors)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for mine, exact in zip(torch.autograd.grad(loss, used), torch.autograd.grad(expected, used), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "peer"), [("clip", ClipLoss), ("siglip", SigLipLoss)])
def test_loss_and_gradients_are_open_clips(kind: str, peer: type[torch.nn.Module]) -> None:
    tensors = inputs()[: 4 if kind == "siglip" else 3]
    images, texts, log_scale, *bias = tensors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        expected = peer()(images, texts, log_scale.exp(), *bias) * len(images)
    loss = contrastive_loss(kind, *tensors)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for mine, exact in zip(torch.autograd.grad(loss, tensors), torch.autograd.grad(expected, tensors), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_no_tensor_of_all_pairs_is_kept_for_the_backward_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "BLOCK_ROWS", 8)
    sizes: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return tensor

    tensors = inputs(64)[: 4 if kind == "siglip" else 3]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        contrastive_loss(kind, *tensors).backward()  # type: ignore[arg-type]
    assert sizes and max(sizes) <= 8 * 64


def test_autocast_does_not_round_the_logits() -> None:
    images, texts, scale, bias = (tensor.detach().float() for tensor in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss("siglip", images, texts, scale, bias)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, contrastive_loss("siglip", images, texts, scale, bias))


def test_confident_pairs_keep_their_loss() -> None:
    """In float32 too: a matching pair's small loss is no difference of large numbers."""
    pairs, scale, bias = torch.eye(5, dtype=torch.float64), torch.tensor([3.4]).double(), torch.tensor([-15.0]).double()
    exact = siglip(pairs, pairs, scale, bias)
    single = contrastive_loss("siglip", pairs.float(), pairs.float(), scale.float(), bias.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0)
