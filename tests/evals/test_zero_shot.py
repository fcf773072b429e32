"""Zero-shot classification with a hand-made model, and class embeddings against open_clip's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from torch.nn.functional import normalize

from vlmkit.data.samples import LabelledSample
from vlmkit.errors import UserError
from vlmkit.evals.zero_shot import class_embeddings, words_of, zero_shot

COLOURS = ["red", "green", "blue"]


class Squares:
    """Squares of one plain colour each; ``size`` applies to one of them only."""

    fingerprint = "0"
    classes = {"colour": COLOURS, "size": ["big_one", "small"], "taste": ["sweet"]}  # noqa: RUF012

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> LabelledSample:
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[..., index % 3] = 200
        return LabelledSample(pixels, {"colour": index % 3, **({"size": 0} if index == 0 else {})})


class ReadsColours:
    """Embeds an image as its mean colour, and a sentence as the colours it names (``big`` counts as red)."""

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return normalize(pixel_values.float().mean(dim=(2, 3)), dim=1)

    def encode_text(self, text_ids: torch.Tensor) -> torch.Tensor:
        return normalize(text_ids.float() + 1e-3, dim=1)


def colours_named(sentences: Sequence[str]) -> torch.Tensor:
    return torch.tensor(
        [[f" {word}" in f" {text.replace('big one', 'red')}" for word in COLOURS] for text in sentences]
    )


def test_images_go_to_the_class_whose_sentences_are_nearest() -> None:
    seen: list[tuple[int, int]] = []
    colour, size = zero_shot(
        ReadsColours(), colours_named, 8, Squares(), batch_size=4, on_progress=lambda *numbers: seen.append(numbers)
    )
    assert (colour.attribute, colour.accuracy, colour.num_samples) == ("colour", 1.0, 6)
    assert colour.chance == pytest.approx(1 / 3)
    assert (size.attribute, size.accuracy, size.num_samples) == ("size", 1.0, 1)  # nothing has the attribute taste
    assert seen == [(4, 6), (6, 6)]


def test_a_model_that_reads_wrongly_is_scored_as_wrong() -> None:
    colour, _ = zero_shot(ReadsColours(), lambda sentences: colours_named(sentences).roll(1, 1), 8, Squares())
    assert colour.accuracy == 0.0


class AnyText:
    """A text embedding that depends on every character, in the two forms that open_clip and vlmkit call."""

    def __init__(self) -> None:
        self.table = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    def encode_text(self, text_ids: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        assert normalize
        places = torch.arange(text_ids.shape[1])[:, None] + 1
        return torch.nn.functional.normalize((self.table[text_ids] * places.sin()).sum(dim=1), dim=1)


def characters(sentences: Sequence[str]) -> torch.Tensor:
    return torch.tensor([list(text.encode().ljust(100)) for text in sentences])


def test_class_embeddings_are_those_of_open_clip() -> None:
    names = ["red", "first character", "ring"]
    expected = build_zero_shot_classifier(AnyText(), characters, names, OPENAI_IMAGENET_TEMPLATES)
    found = class_embeddings(AnyText(), characters, words_of(["red", "first_character", "ring"]))
    np.testing.assert_allclose(found, expected.T.numpy(), atol=1e-6)


def wnids(count: int) -> list[str]:
    return [f"n{number:08d}" for number in range(1440764, 1440764 + 7 * count, 7)]


def test_imagenets_folders_are_read_by_their_words() -> None:
    numbers = wnids(1000)
    assert words_of(numbers) == list(IMAGENET_CLASSNAMES)
    assert words_of(numbers[::-1]) == list(IMAGENET_CLASSNAMES)[::-1], "the order of the numbers counts, not the list's"
    with pytest.raises(UserError, match=r"n01440764.*there are 12 here: name the folders by words"):
        words_of(wnids(12))
    assert words_of(["n01440764", "tench"]) == ["n01440764", "tench"]


def test_classes_of_one_name_are_told_apart() -> None:
    """Two of ImageNet's classes are called "missile" and two "sunglasses": scores are of the numbers, not the words."""

    class Doubles(Squares):
        classes = {"colour": wnids(1000)}  # noqa: RUF012

        def __getitem__(self, index: int) -> LabelledSample:
            twins = [number for number, name in enumerate(IMAGENET_CLASSNAMES) if name == "missile"]
            return LabelledSample(super().__getitem__(index).image, {"colour": twins[index % 2]})

    class SeesMissiles(ReadsColours):
        def encode_text(self, text_ids: torch.Tensor) -> torch.Tensor:
            return normalize(text_ids.float() - 0.5, dim=1)

    missiles = lambda texts: torch.tensor([["missile" in text] * 3 for text in texts])  # noqa: E731
    (found,) = zero_shot(SeesMissiles(), missiles, 8, Doubles())
    assert found.accuracy == 0.5 == found.chance
