"""Random changes of colour: brightness, contrast, saturation and hue, in random order; and turning images grey.

The operations are those of torchvision's ``ColorJitter`` and ``Grayscale``. All four run on one float image, rounded
once at the end, and hue turns without a detour over HSV: several times as fast on one core, and at most two of 255
levels apart from torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vlmkit.data.draws import Draws

LUMA = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in the brightness that the eye sees (ITU-R BT.601, as in Pillow and torchvision)."""

_LEAST_AT = torch.tensor([3.0, 5.0, 1.0])[:, None, None] / 6
"""The hue, as a part of the circle, at which red, green and blue are least: opposite of their own."""
_TWO, _FOUR = torch.tensor(2.0), torch.tensor(4.0)


class ColorJitter:
    """Change brightness, contrast, saturation and hue of uint8 [3, H, W] by random amounts, in random order.

    ``strengths`` (b, c, s, h): the factors of the first three are uniform in [max(0, 1 - b), 1 + b] and so on, the turn
    of the hue is uniform in [-h, h] of a full circle. All randomness comes from the draws of the call.
    """

    def __init__(self, strengths: tuple[float, float, float, float]) -> None:
        *factors, self._hue = strengths
        self._factors = [(max(0.0, 1 - strength), 1 + strength) for strength in factors]

    def __call__(self, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        factors = [draws.uniform(low, high) for low, high in self._factors]
        turn = draws.uniform(-self._hue, self._hue)
        operations: list[tuple[Callable[[torch.Tensor, float], torch.Tensor], float]] = [
            (_brightness, factors[0]),
            (_contrast, factors[1]),
            (_saturation, factors[2]),
            (_hue, turn),
        ]
        values = image.to(torch.float32, memory_format=torch.contiguous_format)
        for operation, amount in draws.shuffled(operations):
            values = operation(values, amount)
        return values.round_().to(torch.uint8)


def to_gray(image: torch.Tensor) -> torch.Tensor:
    """uint8 [3, H, W] -> the same with three equal channels."""
    gray = _luma(image.to(torch.float32)).round_().to(torch.uint8)
    return gray.expand(3, -1, -1)


def _brightness(values: torch.Tensor, factor: float) -> torch.Tensor:
    return values.mul_(factor).clamp_(0, 255)


def _contrast(values: torch.Tensor, factor: float) -> torch.Tensor:
    mean = float(_luma(values).floor_().mean())
    return values.mul_(factor).add_((1 - factor) * mean).clamp_(0, 255)


def _saturation(values: torch.Tensor, factor: float) -> torch.Tensor:
    gray = _luma(values)
    return values.mul_(factor).add_(gray, alpha=1 - factor).clamp_(0, 255)


def _hue(values: torch.Tensor, turn: float) -> torch.Tensor:
    """Turn the hue of [3, H, W] by a part of the circle; largest and smallest channel keep their values (HSV)."""
    red, green, blue = values
    largest, least = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    spread = largest - least
    scale = spread.clamp(min=1e-6).reciprocal_()
    # Hue in sixths of the circle: which channel is largest, and where it lies between the other two.
    between_blue_and_red = torch.addcmul(_TWO, blue - red, scale)
    between_red_and_green = torch.addcmul(_FOUR, red - green, scale)
    hue = torch.where(largest == green, between_blue_and_red, between_red_and_green)
    hue = torch.where(largest == red, (green - blue).mul_(scale), hue)
    # Parts of the circle from the hue at which a channel is least; within 1/6 it stays so, beyond 2/6 it is largest.
    away = hue.mul_(1 / 6).add_(turn) - _LEAST_AT
    away = away.sub_(away.round()).abs_()
    return torch.addcmul(largest, spread, torch.rsub(away, 2, alpha=6).clamp_(0, 1), value=-1)


def _luma(values: torch.Tensor) -> torch.Tensor:
    """[3, H, W] -> [H, W]."""
    red, green, blue = values
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
