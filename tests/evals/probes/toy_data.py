"""Labelled images, towers and splits whose features are known in closed form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from vlmkit.data.samples import LabelledSample
from vlmkit.evals.probes.features import AttributeSplit

COLOURS = ["blue", "green", "red"]


class ColouredSquares:
    """Plain images of three noisy colours; ``side`` is a coin that the image does not show."""

    fingerprint = "0"

    def __init__(self, size: int, seed: int, colours: list[str] = COLOURS, bad: tuple[int, ...] = ()) -> None:
        rng = np.random.default_rng(seed)
        self.classes = {"colour": colours, "side": ["left", "right"]}
        self.names = rng.choice(colours, size)
        self.sides = rng.integers(2, size=size)
        self.noise = rng.integers(0, 60, (size, 3))
        self.bad = bad

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledSample:
        channel = {"red": 0, "green": 1, "blue": 2}[self.names[index]]
        pixels = np.zeros((8, 8, 3), np.uint8) + self.noise[index].astype(np.uint8)
        pixels[..., channel] += 120
        labels: Mapping[str, int] = {"colour": self.classes["colour"].index(self.names[index])}
        if index % 4:
            labels = {**labels, "side": int(self.sides[index])}
        return LabelledSample(b"not an image" if index in self.bad else pixels, labels)


class MeanColour:
    """A tower whose pooled feature is the mean colour, or nothing of the image at all."""

    image_size = 8

    def __init__(self, blind: bool = False) -> None:
        self.blind = blind
        self.images_seen = 0

    def pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        assert pixel_values.dtype == torch.uint8
        self.images_seen += len(pixel_values)
        means = pixel_values.float().mean(dim=(2, 3))
        return torch.zeros_like(means) if self.blind else means


def split_of(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray | None = None, test_y: np.ndarray | None = None
) -> AttributeSplit:
    """An attribute ``kind`` with classes named by their numbers; tested on the training part if no other is given."""
    test_x, test_y = (train_x, train_y) if test_x is None or test_y is None else (test_x, test_y)
    names = tuple(str(number) for number in range(int(train_y.max()) + 1))
    return AttributeSplit("kind", names, train_x, train_y, test_x, test_y, chance=0.0)
