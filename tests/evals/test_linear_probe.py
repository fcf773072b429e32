"""The linear probe on towers whose features are known in closed form."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from vlmkit.data.samples import LabelledSample
from vlmkit.errors import UserError
from vlmkit.evals.probes.linear import linear_probe, probe_pair

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


class MeanColour(torch.nn.Module):
    """A tower whose pooled feature is the mean colour, or nothing of the image at all."""

    image_size = 8

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind
        self.images_seen = 0

    def pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        assert pixel_values.dtype == torch.uint8
        self.images_seen += len(pixel_values)
        means = pixel_values.float().mean(dim=(2, 3))
        return torch.zeros_like(means) if self.blind else means


def test_separable_attribute_is_read_and_an_invisible_one_is_not() -> None:
    train, test = ColouredSquares(300, seed=0), ColouredSquares(200, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colour, side = linear_probe(MeanColour(), train, test, batch_size=64)
    assert (colour.attribute, colour.accuracy, colour.stderr, colour.num_samples) == ("colour", 1.0, 0.0, 200)
    assert colour.chance == max(np.unique(test.names, return_counts=True)[1]) / 200
    assert side.num_samples == 150  # the attribute is absent from every fourth image
    assert side.accuracy == pytest.approx(0.5, abs=4 * side.stderr)
    assert side.stderr == pytest.approx(math.sqrt(side.accuracy * (1 - side.accuracy) / 149))


def test_result_depends_on_nothing_but_data_and_weights() -> None:
    train, test = ColouredSquares(200, seed=0), ColouredSquares(100, seed=1)
    first = linear_probe(MeanColour(), train, test, batch_size=64)
    torch.manual_seed(5)
    np.random.seed(5)
    second = linear_probe(MeanColour(), train, test, batch_size=7)
    assert [result.correct.tolist() for result in first] == [result.correct.tolist() for result in second]


def test_pair_marks_the_ceiling_and_gives_the_paired_gain() -> None:
    train, test = ColouredSquares(300, seed=0), ColouredSquares(200, seed=1)
    colour, _ = probe_pair(MeanColour(), MeanColour(), train, test)
    assert not colour.informative and colour.note == "ceiling: uninformative"
    assert colour.difference == (0.0, 0.0)

    colour, _ = probe_pair(MeanColour(), MeanColour(blind=True), train, test)
    assert colour.informative and colour.note == ""
    gain, stderr = colour.difference
    assert gain == pytest.approx(1 - colour.random.accuracy)
    assert stderr == pytest.approx(colour.random.stderr)  # the trained tower is always right: only one side varies
    assert colour.random.accuracy <= colour.random.chance + 1e-9


class FaintTint:
    """Greys of every brightness, one half of them a touch redder: a strong penalty hides the difference."""

    fingerprint = "1"
    classes = {"tint": ["grey", "red"]}  # noqa: RUF012

    def __init__(self, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.brightness, self.red = rng.integers(0, 200, size), rng.integers(2, size=size)

    def __len__(self) -> int:
        return len(self.red)

    def __getitem__(self, index: int) -> LabelledSample:
        pixels = np.full((8, 8, 3), self.brightness[index], np.uint8)
        pixels[..., 0] += np.uint8(6 * self.red[index])
        return LabelledSample(pixels, {"tint": int(self.red[index])})


def test_the_penalty_is_chosen_for_the_data() -> None:
    (tint,) = linear_probe(MeanColour(), FaintTint(500, 0), FaintTint(200, 1))
    assert tint.accuracy > 0.95


def test_each_image_is_read_once_and_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    tower = MeanColour()
    linear_probe(
        tower, ColouredSquares(50, 0), ColouredSquares(30, 1), batch_size=20, on_progress=lambda *a: seen.append(a)
    )
    assert tower.images_seen == 80
    assert seen == [(20, 80), (40, 80), (50, 80), (70, 80), (80, 80)]


def test_classes_are_matched_by_name_not_by_index() -> None:
    colour, _ = linear_probe(
        MeanColour(), ColouredSquares(200, 0, ["blue", "green", "red"]), ColouredSquares(100, 1, ["red", "blue"])
    )
    assert colour.accuracy == 1.0


def test_a_class_never_trained_on_is_wrong() -> None:
    test = ColouredSquares(100, 1)
    colour, _ = linear_probe(MeanColour(), ColouredSquares(200, 0, ["green", "red"]), test)
    assert colour.accuracy == pytest.approx(np.mean(test.names != "blue"))


def test_unreadable_images_are_left_out() -> None:
    colour, _ = linear_probe(MeanColour(), ColouredSquares(200, 0, bad=(0, 5)), ColouredSquares(100, 1, bad=(7,)))
    assert (colour.num_samples, colour.accuracy) == (99, 1.0)


def test_one_class_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'colour' has fewer than two classes"):
        linear_probe(MeanColour(), ColouredSquares(50, 0, ["red"]), ColouredSquares(50, 1))


def test_unrelated_sets_are_refused() -> None:
    other = ColouredSquares(50, 1)
    other.classes = {"breed": ["cat"]}
    with pytest.raises(UserError, match="share no attribute"):
        linear_probe(MeanColour(), ColouredSquares(50, 0), other)
