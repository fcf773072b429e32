"""What a source yields: images with captions, with conversations, or with labels. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from vlmkit.contracts import Source

SampleT = TypeVar("SampleT")


class BadSample(Exception):
    """A sample inside good data that cannot be used: the loader replaces it, counts it and goes on."""


Image = bytes | np.ndarray
"""An encoded file as it stands on disk, or decoded pixels as uint8 [H, W, 3]."""

LazyImage = Image | Callable[[], Image]
"""An image, or a function that reads or draws it; the function raises BadSample where that fails."""


@dataclass(frozen=True)
class CaptionSample:
    """An image and one or more captions, each of which describes it on its own."""

    image: Image
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    ``references`` are all answers that count as right; they default to ``(answer,)``. ``family`` groups questions
    for reporting (``reasoning``, ``ocr``, ...).
    """

    question: str
    answer: str
    family: str = ""
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.references:
            object.__setattr__(self, "references", (self.answer,))


@dataclass(frozen=True)
class ConversationSample:
    """Turns about zero or more images, which stay unread until they are asked for: with cached features nobody asks.

    With ``independent`` every turn is a question of its own about the images and must not see the other turns;
    otherwise the turns are one dialogue, in order.
    """

    id: str
    images: tuple[LazyImage, ...]
    turns: tuple[Turn, ...]
    independent: bool = False

    def read_images(self) -> list[Image]:
        """The images themselves. Raises BadSample if one cannot be read."""
        return [image() if callable(image) else image for image in self.images]


@dataclass(frozen=True)
class LabelledSample:
    """An image and its class index for each attribute; an attribute that does not apply is absent."""

    image: Image
    labels: Mapping[str, int]


class CaptionSource(Source[CaptionSample], Protocol):
    """A source of captions that can be read without their images, at a fraction of the cost."""

    def captions_only(self, index: int) -> tuple[str, ...]:
        """``source[index].captions``; raises BadSample where these cannot be used."""
        ...


def evenly_spaced(source: Source[SampleT], most: int) -> Iterator[SampleT]:
    """At most ``most`` samples of a source, the same each time, without those that cannot be used: enough to tell how
    large its samples are, on average."""
    length = len(source)
    count = min(most, length)
    for position in range(count):
        try:
            yield source[position * length // count]
        except BadSample:
            continue
