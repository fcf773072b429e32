"""Reading labelled images out: what is matched by name, what is left out, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from toy_data import ColouredSquares, MeanColour

from vlmkit.errors import UserError
from vlmkit.evals.probes.features import AttributeSplit, probe_splits


def splits(train: ColouredSquares, test: ColouredSquares) -> list[AttributeSplit]:
    tower = MeanColour()
    (found,) = probe_splits([tower.pooled], tower.image_size, train, test, batch_size=20)
    return found


def test_each_image_is_read_once_and_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    towers = MeanColour(), MeanColour(blind=True)
    two = probe_splits(
        [tower.pooled for tower in towers],
        8,
        ColouredSquares(50, 0),
        ColouredSquares(30, 1),
        batch_size=20,
        on_progress=lambda *numbers: seen.append(numbers),
    )
    assert [tower.images_seen for tower in towers] == [80, 80]
    assert seen == [(20, 80), (40, 80), (50, 80), (70, 80), (80, 80)]
    assert two[0][0].train_x.any() and not two[1][0].train_x.any()


def test_features_and_labels_are_those_of_the_image() -> None:
    train, test = ColouredSquares(50, 0), ColouredSquares(30, 1)
    colour, side = splits(train, test)
    assert (colour.attribute, colour.classes, side.classes) == ("colour", ("blue", "green", "red"), ("left", "right"))
    for index in (0, 17, 29):
        pixels = test[index].image
        np.testing.assert_allclose(colour.test_x[index], pixels.mean(axis=(0, 1)), rtol=1e-6)
        assert colour.classes[colour.test_y[index]] == test.names[index]
    assert len(side.train_y) == len(side.train_x) == 37  # absent from every fourth image


def test_classes_are_matched_by_name_and_unknown_ones_have_no_index() -> None:
    test = ColouredSquares(40, 1, ["red", "blue"])
    (colour, _) = splits(ColouredSquares(50, 0, ["green", "red"]), test)
    assert colour.classes == ("green", "red")
    np.testing.assert_array_equal(colour.test_y, np.where(test.names == "red", 1, -1))
    assert colour.chance == max(np.mean(test.names == "red"), np.mean(test.names == "blue"))


def test_unreadable_images_are_left_out() -> None:
    colour, _ = splits(ColouredSquares(200, 0, bad=(0, 5)), ColouredSquares(100, 1, bad=(7,)))
    assert (len(colour.train_x), len(colour.test_x)) == (198, 99)


def test_too_many_unreadable_images_are_refused() -> None:
    with pytest.raises(UserError, match="3 of 100 samples cannot be read"):
        splits(ColouredSquares(50, 0), ColouredSquares(100, 1, bad=(1, 2, 3)))


def test_one_class_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'colour' has fewer than two classes"):
        splits(ColouredSquares(50, 0, ["red"]), ColouredSquares(50, 1))


def test_unrelated_sets_are_refused() -> None:
    other = ColouredSquares(50, 1)
    other.classes = {"breed": ["cat"]}
    with pytest.raises(UserError, match="share no attribute"):
        splits(ColouredSquares(50, 0), other)
