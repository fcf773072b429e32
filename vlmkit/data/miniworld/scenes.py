"""What is in a scene: coloured shapes on a grid and a sign; and which split a scene belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from vlmkit.data.draws import Draws

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "diamond", "cross")
CHARACTERS = "479bdehkrtxz"
BADGES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)

MAX_OBJECTS = 6
MAX_CHARACTERS = 6
BADGE_COLUMNS = 3
SCATTER_COLUMNS, SCATTER_ROWS = 4, 3

SPLITS = ("train", "val", "test")
# The space of scenes is cut by a hash of the content; training owns half of it.
_OWNER_OF_RESIDUE = ("train", "train", "val", "test")


class Item(NamedTuple):
    """One shape, with its cell: of three columns for a badge, of the 4 x 3 grid in a scatter scene."""

    color: str
    shape: str
    column: int
    row: int


@dataclass(frozen=True)
class Scene:
    """One large shape (a badge) or two to six small ones (scatter), in reading order, and a sign ("" if there is none).

    These fields are the scene's identity: everything a caption or an answer can depend on. Sizes, shades, jitter, sign
    style and background are left to the drawing.
    """

    items: tuple[Item, ...]
    sign: str

    @property
    def is_badge(self) -> bool:
        return len(self.items) == 1

    @property
    def badge(self) -> str:
        """The badge's name, "red heart"; of a badge scene only."""
        (item,) = self.items
        return f"{item.color} {item.shape}"

    @property
    def content(self) -> str:
        """The identity in one line, e.g. ``red heart 1,0;k99z``."""
        cells = "|".join(f"{item.color} {item.shape} {item.column},{item.row}" for item in self.items)
        return f"{cells};{self.sign}"


def split_of(scene: Scene) -> str:
    """The only split in which a scene can occur, whatever the seed: a function of its content alone."""
    digest = hashlib.blake2b(scene.content.encode(), digest_size=8).digest()
    return _OWNER_OF_RESIDUE[int.from_bytes(digest, "big") % len(_OWNER_OF_RESIDUE)]


def draw_scene(split: str, draws: Draws) -> Scene:
    """A random scene of the split: scenes owned by another split are drawn again."""
    while True:
        items = _badge(draws) if draws.chance(0.55) else _scatter(draws)
        scene = Scene(items, _sign(draws) if draws.chance(0.85) else "")
        if split_of(scene) == split:
            return scene


def _badge(draws: Draws) -> tuple[Item, ...]:
    return (Item(draws.pick(COLORS), draws.pick(SHAPES), draws.between(0, BADGE_COLUMNS - 1), 0),)


def _scatter(draws: Draws) -> tuple[Item, ...]:
    # Few colours and shapes per scene, so that counts and comparisons have something to count.
    colors = draws.sample(COLORS, draws.between(2, 4))
    shapes = draws.sample(SHAPES, draws.between(2, 4))
    cells = draws.sample(range(SCATTER_COLUMNS * SCATTER_ROWS), draws.between(2, MAX_OBJECTS))
    return tuple(
        Item(draws.pick(colors), draws.pick(shapes), cell % SCATTER_COLUMNS, cell // SCATTER_COLUMNS)
        for cell in sorted(cells)
    )


def _sign(draws: Draws) -> str:
    return "".join(draws.pick(CHARACTERS) for _ in range(draws.between(2, MAX_CHARACTERS)))
