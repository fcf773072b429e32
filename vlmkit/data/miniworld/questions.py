"""Questions about a scene, with their one right answer, in four families.

``reasoning`` needs facts that no image shows (the limit is the language model), ``ocr`` needs every character of the
sign to reach the language model (the limit is the visual tokens), ``attribute`` and ``count`` need vision and binding.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from vlmkit.data.draws import Draws
from vlmkit.data.miniworld.facts import ALLY, FACTS, RELATIONS
from vlmkit.data.miniworld.scenes import COLORS, SHAPES, Scene
from vlmkit.data.miniworld.words import NUMBERS, plural

FAMILIES = ("reasoning", "ocr", "attribute", "count")

_FACT = ("which {} has this badge", "which {} is it", "name the {} of this badge", "what {} has the badge")
_ALLY_FACT = ("which {} has the ally", "name the {} of its ally", "what {} has the ally of this badge")
_ALLY = ("which badge is the ally", "name the ally of this badge", "who is its ally")

_READ = ("read the sign", "what does the sign say", "spell the text", "what is written here")
_CHARACTER = ("what is letter {}", "which character is number {}", "read letter {}")
_LAST = ("what is the last letter", "which character is last", "read the last letter")

_BADGE_ATTRIBUTES = {
    "color": ("what color is the badge", "which color is it", "name the color"),
    "shape": ("what shape is the badge", "which shape is it", "name the shape"),
}
_COLOR_OF = ("what color is the {}", "which color has the {}", "name the color of the {}")
_SHAPE_OF = ("what shape is the {} one", "which shape is {}", "name the {} shape")
_EXTREMES = {
    "leftmost": (0, -1),  # which coordinate, and its direction
    "rightmost": (0, 1),
    "highest": (1, -1),
    "lowest": (1, 1),
}
_EXTREME = {
    "shape": ("what shape is {}", "which shape is the {} one"),
    "color": ("what color is {}", "which color is the {} one"),
}

_HOW_MANY = ("how many objects", "how many shapes are there", "count the objects")
_HOW_MANY_OF = ("how many {}", "count the {}", "how many {} are there")
_HOW_MANY_CHARACTERS = ("how many letters", "how long is the sign", "count the letters")

_Candidate = tuple[tuple[str, ...], str, str]  # wordings, the name to fill in, the answer


class Question(NamedTuple):
    """A question, its answer (lower case), and the family that it is scored under."""

    question: str
    answer: str
    family: str


def ask_questions(scene: Scene, draws: Draws) -> tuple[Question, ...]:
    """Two to nine questions about a scene; reasoning about badge scenes only, ocr where there is a sign."""
    pairs = {
        "reasoning": _reasoning(scene, draws) if scene.is_badge else [],
        "ocr": _ocr(scene.sign, draws) if scene.sign else [],
        "attribute": _badge_attribute(scene, draws) if scene.is_badge else _attributes(scene, draws),
        "count": _counts(scene, draws),
    }
    return tuple(Question(*pair, family) for family in FAMILIES for pair in pairs[family])


def _reasoning(scene: Scene, draws: Draws) -> list[tuple[str, str]]:
    """Three facts of the badge itself, and two that need its ally first."""
    *own, first, second = draws.sample(RELATIONS, 5)
    pairs = [(draws.pick(_FACT).format(relation), FACTS[relation][scene.badge]) for relation in own]
    ally = ALLY[scene.badge]
    pairs.append((draws.pick(_ALLY_FACT).format(first), FACTS[first][ally]))
    if draws.chance(0.5):
        pairs.append((draws.pick(_ALLY), ally))
    else:
        pairs.append((draws.pick(_ALLY_FACT).format(second), FACTS[second][ally]))
    return pairs


def _ocr(sign: str, draws: Draws) -> list[tuple[str, str]]:
    """The whole sign with its characters apart ("k 9 9 z"), and one character of it."""
    pairs = [(draws.pick(_READ), " ".join(sign))]
    if draws.chance(0.25):
        pairs.append((draws.pick(_LAST), sign[-1]))
    else:
        position = draws.between(1, len(sign))
        pairs.append((draws.pick(_CHARACTER).format(position), sign[position - 1]))
    return pairs


def _badge_attribute(scene: Scene, draws: Draws) -> list[tuple[str, str]]:
    (item,) = scene.items
    attribute = draws.pick(("color", "shape"))
    return [(draws.pick(_BADGE_ATTRIBUTES[attribute]), getattr(item, attribute))]


def _attributes(scene: Scene, draws: Draws) -> list[tuple[str, str]]:
    """Up to three questions on shapes that can be named without doubt: the only one of its kind, or the leftmost."""
    colors, shapes = (Counter(getattr(item, name) for item in scene.items) for name in ("color", "shape"))
    unique: list[_Candidate] = [(_COLOR_OF, item.shape, item.color) for item in scene.items if shapes[item.shape] == 1]
    unique += [(_SHAPE_OF, item.color, item.shape) for item in scene.items if colors[item.color] == 1]
    extreme: list[_Candidate] = []
    for name, (axis, direction) in _EXTREMES.items():
        key = [direction * (item.column, item.row)[axis] for item in scene.items]
        if key.count(max(key)) == 1:
            item = scene.items[key.index(max(key))]
            extreme += [(_EXTREME["shape"], name, item.shape), (_EXTREME["color"], name, item.color)]
    chosen = draws.sample(unique, 2)
    chosen += draws.sample(extreme, 3 - len(chosen))
    return [(draws.pick(templates).format(name), answer) for templates, name, answer in chosen]


def _counts(scene: Scene, draws: Draws) -> list[tuple[str, str]]:
    """How many shapes, or characters, of a badge scene; of a scatter scene, also those of a colour and of a shape,
    now and then of one that is not there."""
    if scene.is_badge and scene.sign and draws.chance(0.5):
        return [(draws.pick(_HOW_MANY_CHARACTERS), NUMBERS[len(scene.sign)])]
    pairs = [(draws.pick(_HOW_MANY), NUMBERS[len(scene.items)])]
    if not scene.is_badge:
        color = draws.pick(COLORS) if draws.chance(0.2) else draws.pick(scene.items).color
        shape = draws.pick(SHAPES) if draws.chance(0.2) else draws.pick(scene.items).shape
        for noun, name, value in ((f"{color} ones", "color", color), (plural(shape), "shape", shape)):
            count = sum(getattr(item, name) == value for item in scene.items)
            pairs.append((draws.pick(_HOW_MANY_OF).format(noun), NUMBERS[count]))
    return pairs
