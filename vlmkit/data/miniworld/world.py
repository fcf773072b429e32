"""The embedded dataset as a sized, random-access collection: nothing is stored, each scene is made when asked for."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np

from vlmkit.data.draws import Draws
from vlmkit.data.miniworld.captions import write_captions
from vlmkit.data.miniworld.drawing import BASE_SIZE, draw_image
from vlmkit.data.miniworld.facts import VERSION
from vlmkit.data.miniworld.questions import Question, ask_questions
from vlmkit.data.miniworld.scenes import CHARACTERS, COLORS, MAX_OBJECTS, SHAPES, SPLITS, Scene, draw_scene
from vlmkit.data.miniworld.words import NUMBERS
from vlmkit.errors import UserError


class MiniWorld:
    """Drawn scenes with captions, questions and labels; every value is a function of (split, seed, index).

    Splits share no scene, under any pair of seeds (see :func:`~vlmkit.data.miniworld.scenes.split_of`), and the first
    n scenes do not depend on ``scenes``. Everything but the pixels is the same at every image size.

    Args:
        split: ``train``, ``val`` or ``test``.
        scenes: number of scenes.
        seed: which draw of the world.
        image_size: side of the images in pixels; the world is designed at 64.

    Raises:
        UserError: for an unknown split, a scene count below 1, or an image size other than 64, 96, 128, ...
    """

    classes: ClassVar[dict[str, list[str]]] = {
        "color": list(COLORS),
        "shape": list(SHAPES),
        "count": list(NUMBERS[2 : MAX_OBJECTS + 1]),
        "first_character": list(CHARACTERS),
    }
    """Attributes of :meth:`labels` and the names of their classes."""

    def __init__(self, split: str, scenes: int, seed: int = 0, image_size: int = BASE_SIZE) -> None:
        if split not in SPLITS:
            raise UserError(f"miniworld has no split {split!r}; choose one of {', '.join(SPLITS)}.")
        if scenes < 1:
            raise UserError(f"miniworld cannot have {scenes} scenes; ask for 1 or more.")
        if image_size < BASE_SIZE or image_size % 32:
            raise UserError(
                f"miniworld cannot draw {image_size} px images; use 64, 96, 128 or a larger multiple of 32."
            )
        self.split = split
        self.seed = seed
        self.image_size = image_size
        self._scenes = scenes

    def __len__(self) -> int:
        return self._scenes

    def scene(self, index: int) -> Scene:
        """What is in the scene."""
        return draw_scene(self.split, self._draws("scene", index))

    def image(self, index: int) -> np.ndarray:
        """The drawing: uint8 array [image_size, image_size, 3], RGB."""
        return draw_image(self.scene(index), self.image_size, self._draws("image", index))

    def captions(self, index: int) -> tuple[str, ...]:
        """Three captions, differing in wording, order and completeness."""
        return write_captions(self.scene(index), self._draws("captions", index))

    def questions(self, index: int) -> tuple[Question, ...]:
        """(question, answer, family) triples, each answerable from the image and the facts alone."""
        return ask_questions(self.scene(index), self._draws("questions", index))

    def labels(self, index: int) -> dict[str, int]:
        """Attribute -> class index: ``color`` and ``shape`` of a badge, ``count`` of scattered shapes, the sign's
        ``first_character``. An attribute that does not apply to the scene is absent."""
        scene = self.scene(index)
        if scene.is_badge:
            (item,) = scene.items
            names = {"color": item.color, "shape": item.shape}
        else:
            names = {"count": NUMBERS[len(scene.items)]}
        if scene.sign:
            names["first_character"] = scene.sign[0]
        return {attribute: self.classes[attribute].index(name) for attribute, name in names.items()}

    @property
    def fingerprint(self) -> str:
        """Identifies the data: the version of the world and all arguments."""
        key = f"miniworld {VERSION} {self.split} {self._scenes} {self.seed} {self.image_size}"
        return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()

    def _draws(self, purpose: str, index: int) -> Draws:
        if not 0 <= index < self._scenes:
            raise IndexError(f"scene {index} of {self._scenes}")
        return Draws(purpose, self.seed, self.split, index)
