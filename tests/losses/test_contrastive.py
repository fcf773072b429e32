"""The losses of CLIP and SigLIP against dense float64 formulas; on ranks, see tests/tasks/test_objective_worlds.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from vlmkit.losses.contrastive import contrastive_loss


def logsumexp(x: np.ndarray, axis: int) -> np.ndarray:
    top = x.max(axis, keepdims=True)
    return (top + np.log(np.exp(x - top).sum(axis, keepdims=True))).squeeze(axis)


def clip(images: np.ndarray, texts: np.ndarray, log_scale: float, bias: float) -> float:
    logits = math.exp(log_scale) * images @ texts.T
    matching = np.diag(logits)
    return float(((logsumexp(logits, 1) - matching) + (logsumexp(logits, 0) - matching)).sum() / 2)


def siglip(images: np.ndarray, texts: np.ndarray, log_scale: float, bias: float) -> float:
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = math.exp(log_scale) * float(image @ text) + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total


def inputs() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    images, texts = (normalize(torch.randn(7, 5, generator=g, dtype=torch.float64), dim=1) for _ in range(2))
    return [images, texts, torch.tensor([1.7], dtype=torch.float64), torch.tensor([-2.5], dtype=torch.float64)]


@pytest.mark.parametrize(("kind", "reference"), [("clip", clip), ("siglip", siglip)])
def test_loss_and_gradients_are_those_of_the_dense_formula(kind: str, reference: object) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs()]
    used = tensors if kind == "siglip" else tensors[:3]
    loss = contrastive_loss(kind, *used)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(loss, used)

    def at(*values: np.ndarray) -> float:
        return reference(values[0], values[1], float(values[2][0]), float(values[3][0]))  # type: ignore[operator]

    arrays = [tensor.detach().numpy() for tensor in tensors]
    assert loss.item() == pytest.approx(at(*arrays), rel=1e-12)
    step = 1e-5
    for position, gradient in enumerate(gradients):
        for index in np.ndindex(arrays[position].shape):
            moved = []
            for sign in (1, -1):
                changed = [array.copy() for array in arrays]
                changed[position][index] += sign * step
                moved.append(at(*changed))
            assert gradient[index].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-6, abs=1e-8)


def test_autocast_does_not_round_the_logits() -> None:
    images, texts, scale, bias = (tensor.float() for tensor in inputs())
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss("siglip", images, texts, scale, bias)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, contrastive_loss("siglip", images, texts, scale, bias))
