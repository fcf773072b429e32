"""Scenes to pixels: alpha stamps of shapes and characters, drawn once with Pillow, composed with numpy.

All lengths below are in pixels of a 64 x 64 image; other image sizes scale the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmkit.data.draws import Draws
from vlmkit.data.miniworld.scenes import Item, Scene

BASE_SIZE = 64
_CELL = 16
_SIGN_TOP, _SIGN_HEIGHT = 51, 13
_CHARACTER_WIDTH = 8  # one character per column of 8-px patches
_FONT_SIZE = 13
_BADGE_CENTERS = ((20, 25), (32, 25), (44, 25))
_OVERSAMPLING = 4

_RGB = {
    "red": (228, 30, 45),
    "orange": (250, 140, 25),
    "yellow": (248, 228, 45),
    "green": (40, 178, 65),
    "blue": (50, 95, 240),
    "purple": (145, 45, 185),
    "pink": (255, 120, 180),
    "white": (242, 242, 242),
}
_SIGN_STYLES = (  # plate, ink
    ((238, 236, 224), (22, 22, 26)),
    ((252, 214, 62), (28, 24, 20)),
    ((22, 62, 30), (240, 244, 238)),
)


def draw_image(scene: Scene, image_size: int, draws: Draws) -> np.ndarray:
    """Draw the scene; ``draws`` decides sizes, jitter, shades, sign style and background.

    Returns:
        uint8 array [image_size, image_size, 3].
    """
    scale = image_size / BASE_SIZE
    canvas = _background(image_size, draws)
    for item in scene.items:
        _draw_item(canvas, item, scene.is_badge, scale, draws)
    if scene.sign:
        _draw_sign(canvas, scene.sign, scale, draws)
    return canvas.clip(0, 255).astype(np.uint8)


def _background(image_size: int, draws: Draws) -> np.ndarray:
    left, top = draws.between(0, image_size), draws.between(0, image_size)
    shade = _row([draws.between(4, 56) for _ in range(3)], image_size)
    return _noise(2 * image_size)[top : top + image_size, left : left + image_size] + shade


@lru_cache(maxsize=4)
def _noise(side: int) -> np.ndarray:
    """Near-normal pixel noise [side, side, 3] of standard deviation 5, to cut windows from."""
    # A sum of raw Philox bytes, whose stream is fixed for good; numpy's normal() may change between releases.
    count = side * side * 3
    raw = np.random.Philox(key=64).random_raw(count // 2).view(np.uint8).reshape(count, 4)
    noise = raw.sum(axis=1, dtype=np.float32)
    return ((noise - noise.mean()) * (5 / noise.std())).reshape(side, side, 3)


def _draw_item(canvas: np.ndarray, item: Item, is_badge: bool, scale: float, draws: Draws) -> None:
    if is_badge:
        diameter = draws.between(26, 36)
        center_x, center_y = _BADGE_CENTERS[item.column]
        slack_x, slack_y = 2, 6
    else:
        diameter = draws.between(11, 15)
        center_x, center_y = ((2 * cell + 1) * _CELL // 2 for cell in (item.column, item.row))
        slack_x = slack_y = (_CELL - diameter) // 2  # never out of the cell
    left = center_x - diameter // 2 + draws.between(-slack_x, slack_x)
    top = center_y - diameter // 2 + draws.between(-slack_y, slack_y)
    # All draws are in pixels of the base size, so that the same scene is drawn at every size.
    left, top, diameter = (round(length * scale) for length in (left, top, diameter))
    rgb = _row([channel + draws.between(-14, 14) for channel in _RGB[item.color]], diameter)
    region = canvas[top : top + diameter, left : left + diameter]
    region += _shape_stamp(item.shape, diameter) * (rgb - region)


def _draw_sign(canvas: np.ndarray, sign: str, scale: float, draws: Draws) -> None:
    alpha = np.concatenate([_character_stamp(character, scale) for character in sign], axis=1)
    plate, ink = (_row(rgb, alpha.shape[1]) for rgb in draws.pick(_SIGN_STYLES))
    top = round(_SIGN_TOP * scale)
    canvas[top : top + alpha.shape[0], : alpha.shape[1]] = plate + alpha * (ink - plate)


@lru_cache(maxsize=1024)
def _shape_stamp(shape: str, diameter: int) -> np.ndarray:
    """Alpha [diameter, diameter, 3] of a shape that fills the square."""
    side = diameter * _OVERSAMPLING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    box = (0, 0, side - 1, side - 1)
    if shape == "circle":
        draw.ellipse(box, fill=255)
    elif shape == "ring":
        draw.ellipse(box, fill=255)
        hole = round(0.22 * side)
        draw.ellipse((hole, hole, side - 1 - hole, side - 1 - hole), fill=0)
    else:
        draw.polygon([((x + 1) / 2 * side, (y + 1) / 2 * side) for x, y in _outline(shape)], fill=255)
    return _alpha(mask.resize((diameter, diameter), Image.Resampling.BOX))


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape in the square from -1 to 1, y downwards."""
    if shape == "star":
        turns = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        return list(zip(radii * np.sin(turns), 0.05 - radii * np.cos(turns), strict=True))
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 60)
        heights = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return list(zip(np.sin(t) ** 3, -(heights + 2.5) / 15, strict=True))
    if shape == "cross":
        corner = [(0.36, 0.36), (1.0, 0.36), (1.0, -0.36)]
        quarter_turns = [(1, 0), (0, -1), (-1, 0), (0, 1)]
        return [(x * cos - y * sin, x * sin + y * cos) for cos, sin in quarter_turns for x, y in corner]
    return {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
        "diamond": [(0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0)],
    }[shape]


@lru_cache(maxsize=256)
def _character_stamp(character: str, scale: float) -> np.ndarray:
    """Alpha [sign height, character width, 3] of a character, upper case, centred in its column."""
    width, height = round(_CHARACTER_WIDTH * scale), round(_SIGN_HEIGHT * scale)
    mask = Image.new("L", (width, height))
    font = ImageFont.load_default(_FONT_SIZE * scale)
    ImageDraw.Draw(mask).text((width / 2, height - 2 * scale), character.upper(), fill=255, font=font, anchor="ms")
    return _alpha(mask)


def _alpha(mask: Image.Image) -> np.ndarray:
    return np.repeat(np.asarray(mask, np.float32)[:, :, None] / 255, 3, axis=2)


def _row(rgb: Sequence[int], width: int) -> np.ndarray:
    """A row of one colour [width, 3]: numpy adds it to an image several times faster than a single pixel [3]."""
    return np.full((width, 3), rgb, np.float32)
