"""Colour jitter against torchvision's own functions, on images and on every colour."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import ColorJitter as TorchvisionColorJitter
from torchvision.transforms.v2 import functional as F

from vlmkit.data import color
from vlmkit.data.color import ColorJitter, to_gray
from vlmkit.data.draws import Draws


def random_image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8))


def all_colors() -> torch.Tensor:
    """The corners, edges and greys of the colour cube too, where hue is a matter of cases."""
    levels = (0, 1, 64, 127, 128, 200, 254, 255)
    return torch.tensor(list(itertools.product(levels, repeat=3)), dtype=torch.uint8).T[:, :, None]


OPERATIONS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], tuple[float, ...], int]] = {
    "brightness": (color._brightness, F.adjust_brightness, (0.0, 0.4, 1.0, 1.7), 1),
    "contrast": (color._contrast, F.adjust_contrast, (0.0, 0.4, 1.0, 1.7), 1),
    "saturation": (color._saturation, F.adjust_saturation, (0.0, 0.4, 1.0, 1.7), 1),
    "hue": (color._hue, F.adjust_hue, (-0.5, -0.3, -0.08, 0.0, 0.05, 0.4, 0.5), 2),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("image", [random_image(), all_colors()], ids=["random", "all"])
def test_operations_equal_torchvisions_but_for_rounding(name: str, image: torch.Tensor) -> None:
    ours, theirs, amounts, tolerance = OPERATIONS[name]
    for amount in amounts:
        got = ours(image.float(), amount).round().to(torch.uint8)
        assert (got.int() - theirs(image, amount).int()).abs().max() <= tolerance


def test_gray_equals_torchvisions_but_for_rounding() -> None:
    gray = to_gray(random_image())
    assert gray.dtype == torch.uint8 and gray.shape == (3, 40, 50)
    assert (gray.int() - F.rgb_to_grayscale(random_image(), 3).int()).abs().max() <= 1


def test_jitter_depends_on_its_draws_alone() -> None:
    jitter, image = ColorJitter((0.4, 0.4, 0.4, 0.1)), random_image()
    before = image.clone()
    outputs = [jitter(image, Draws(seed)) for seed in range(10)]
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert all(torch.equal(jitter(image, Draws(seed)), outputs[seed]) for seed in range(10))
    torch.set_rng_state(state)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(image, before)
    assert len({output.numpy().tobytes() for output in outputs}) == 10
    assert all(output.dtype == torch.uint8 and output.shape == image.shape for output in outputs)


def test_no_strength_changes_nothing() -> None:
    image = all_colors()
    assert (ColorJitter((0, 0, 0, 0))(image, Draws(0)).int() - image.int()).abs().max() <= 1


def test_strengths_have_the_distribution_of_torchvisions_jitter() -> None:
    """Mean and spread of what becomes of one colour, in 2000 draws."""
    strengths = (0.32, 0.32, 0.32, 0.08)
    image = torch.tensor([200, 90, 60], dtype=torch.uint8)[:, None, None].expand(3, 2, 2).contiguous()
    image[:, 1, 1] = torch.tensor([20, 200, 240], dtype=torch.uint8)
    draws = Draws(0)
    ours = torch.stack([ColorJitter(strengths)(image, draws) for _ in range(2000)]).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = TorchvisionColorJitter(*strengths)
        theirs = torch.stack([peer(image) for _ in range(2000)]).double()
    error = torch.hypot(ours.std(0), theirs.std(0)) / 2000**0.5
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.12)
