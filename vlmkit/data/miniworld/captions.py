"""Captions of a scene in many wordings, as found alt text has them: complete, partial, tagged, spatial, or too long.

None of them mentions the world's facts: these can be learned from questions only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from vlmkit.data.draws import Draws
from vlmkit.data.miniworld.scenes import SCATTER_COLUMNS, Item, Scene
from vlmkit.data.miniworld.words import NUMBERS, plural

CAPTIONS_PER_SCENE = 3

_SYNONYMS = {
    "red": ("crimson", "scarlet", "bright red"),
    "orange": ("tangerine", "deep orange", "light orange"),
    "yellow": ("golden", "pale yellow", "bright yellow"),
    "green": ("emerald", "grass green", "dark green"),
    "blue": ("azure", "royal blue", "sky blue"),
    "purple": ("violet", "dark purple", "lilac"),
    "pink": ("rose", "hot pink", "light pink"),
    "white": ("ivory", "snow white", "plain white"),
    "circle": ("disc", "dot", "round shape"),
    "square": ("box", "block", "tile"),
    "triangle": ("wedge", "pyramid shape", "three-sided shape"),
    "star": ("five-pointed star", "pointed star", "star shape"),
    "heart": ("love heart", "valentine", "heart shape"),
    "ring": ("hoop", "loop", "hollow circle"),
    "diamond": ("rhombus", "lozenge", "diamond shape"),
    "cross": ("plus", "plus sign", "cross shape"),
}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")

_OPENINGS = (
    "a picture of", "a picture of", "an image of", "an image of", "a photo of", "an image showing", "a drawing of",
    "a picture with",
)  # fmt: skip
_BADGE_SIZES = ("large", "large", "big", "")
_SCATTER_SIZES = ("small", "", "")
_SIGNS = (
    "the letters {}", "the letters {} at the bottom", "the text {}", "the text {} at the bottom", "a sign with {}",
    "a sign that reads {}",
)  # fmt: skip
_NO_SIGN = ("no text", "no sign", "without any text", "no writing below", "nothing written on it")
_BACKDROPS = (
    "on a dark background", "against a dark noisy backdrop", "on black", "on a grainy surface", "in the dark",
    "over a dim background", "on a plain dark field", "with film grain",
)  # fmt: skip
_TAGS = (
    "stock photo", "vector art", "free download", "high quality", "clip art", "logo design", "best price", "wallpaper",
    "new 2021", "for sale", "flat icon", "isolated", "royalty free", "printable", "sticker", "poster", "buy online",
    "geometric shapes", "template", "abstract", "minimal style", "thumbnail", "untitled", "my collection", "page one",
    "for kids", "learning cards", "official badge", "free shipping", "limited edition", "image 12", "click to enlarge",
)  # fmt: skip
_ASIDES = (
    "The whole picture is dark and a little noisy.",
    "It looks like a card from an old board game.",
    "Nobody is in the picture, and nothing moves.",
    "The edges are sharp, but the background is full of grain.",
    "It was probably made with a computer rather than a camera.",
    "Such pictures are used to teach children their colors and shapes.",
)


def write_captions(scene: Scene, draws: Draws) -> tuple[str, ...]:
    """Three captions; in each, the wording and what is left out are drawn anew."""
    return tuple(_style(draws)(scene, draws) for _ in range(CAPTIONS_PER_SCENE))


def _style(draws: Draws) -> Callable[[Scene, Draws], str]:
    """Mostly complete sentences, which is what makes the world learnable in minutes; the rest as noisy as the web."""
    return _plain if draws.chance(0.84) else draws.pick((_tagged, _partial, _spatial, _detailed))


def _plain(scene: Scene, draws: Draws) -> str:
    """Everything in one sentence, shapes or sign first: "a photo of two red stars with the text k 9 on black"."""
    if scene.is_badge or draws.chance(0.1):
        shapes = _shapes(scene, draws)
    else:
        # Mostly one number word a caption, for the whole scene: several would say nothing about it in a bag of words.
        shapes = f"{_number(len(scene.items), draws)} shapes, {_shapes(scene, draws, counted=draws.chance(0.15))}"
    if draws.chance(0.1):
        shapes = f"{shapes} {draws.pick(_BACKDROPS)}"
    opening = draws.pick(_OPENINGS)
    if not scene.sign:
        return f"{opening} {shapes}, {draws.pick(_NO_SIGN)}" if draws.chance(0.1) else f"{opening} {shapes}"
    sign = _sign(scene, draws)
    if draws.chance(0.3):
        return f"{sign} and {opening} {shapes}"
    return f"{opening} {shapes}{draws.pick((', with ', ' and ', ' with '))}{sign}"


def _tagged(scene: Scene, draws: Draws) -> str:
    """Tags with words that say nothing about the image, in any order: "vector art, red star, for sale, k 9"."""
    tags = _groups(scene, draws) + draws.sample(_TAGS, draws.between(1, 4))
    if scene.sign:
        tags.append(" ".join(scene.sign))
    return draws.pick((", ", " | ", " - ", " ")).join(draws.shuffled(tags))


def _partial(scene: Scene, draws: Draws) -> str:
    """A part of the scene: the sign alone, one kind of shape, or the number of shapes."""
    if scene.sign and draws.chance(0.4):
        return draws.pick(("{}", "a sign: {}", "only {}", "note {}", "zoom on {}")).format(_sign(scene, draws))
    if scene.is_badge or draws.chance(0.6):
        group = draws.pick(_groups(scene, draws))
        return draws.pick(("{}", "{} and more", "look at {}", "mostly {}", "{} among other things")).format(group)
    return f"{draws.pick(_OPENINGS)} {_number(len(scene.items), draws)} {draws.pick(('shapes', 'objects', 'things'))}"


def _spatial(scene: Scene, draws: Draws) -> str:
    """Where things are: "a red star to the left of a blue ring", "a red heart on the right"."""
    if scene.is_badge:
        (item,) = scene.items
        return f"{draws.pick(_OPENINGS)} {_with_article(_name(item, draws))} {_place(scene, item)}"
    one, other = draws.sample(scene.items, 2)
    if one.column != other.column:
        relation = "to the left of" if one.column < other.column else "to the right of"
    else:
        relation = draws.pick(("above", "on top of")) if one.row < other.row else draws.pick(("below", "under"))
    return f"{_with_article(_name(one, draws))} {relation} {_with_article(_name(other, draws))}"


def _detailed(scene: Scene, draws: Draws) -> str:
    """Sentences on every shape and every character; with many of them, longer than CLIP's 77 tokens."""
    shapes = [f"{_place(scene, item)} there is {_with_article(_name(item, draws))}." for item in scene.items]
    parts = [f"This picture contains {_number(len(scene.items), draws)} {'shape' if scene.is_badge else 'shapes'}."]
    parts += draws.shuffled(shapes)
    if scene.sign:
        letters = ", ".join(f"{ordinal} {character}" for ordinal, character in zip(_ORDINALS, scene.sign, strict=False))
        text = f"At the bottom there is a sign with {_number(len(scene.sign), draws)} characters: {letters}."
        parts.insert(draws.pick((0, len(parts))), text)
    parts.insert(draws.between(0, len(parts)), draws.pick(_ASIDES))
    return " ".join(part[0].upper() + part[1:] for part in parts)


def _shapes(scene: Scene, draws: Draws, counted: bool = True) -> str:
    *groups, last = draws.shuffled(_groups(scene, draws, counted))
    return f"{', '.join(groups)} and {last}" if groups else last


def _groups(scene: Scene, draws: Draws, counted: bool = True) -> list[str]:
    """Each kind of shape, if ``counted`` with its number: ["two small red stars", "a blue ring"]."""
    sizes = _BADGE_SIZES if scene.is_badge else _SCATTER_SIZES
    groups = []
    for (color, shape), count in Counter((item.color, item.shape) for item in scene.items).items():
        words = (draws.pick(sizes), _word(color, draws), _word(shape, draws))
        name = " ".join(word for word in words if word)
        if count == 1:
            groups.append(_with_article(name))
        else:
            groups.append(f"{_number(count, draws)} {plural(name)}" if counted else plural(name))
    return groups


def _sign(scene: Scene, draws: Draws) -> str:
    return draws.pick(_SIGNS).format(" ".join(scene.sign))


def _name(item: Item, draws: Draws) -> str:
    return f"{_word(item.color, draws)} {_word(item.shape, draws)}"


def _word(word: str, draws: Draws) -> str:
    return word if draws.chance(0.9) else draws.pick(_SYNONYMS[word])


def _number(count: int, draws: Draws) -> str:
    return NUMBERS[count] if draws.chance(0.95) else str(count)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def _place(scene: Scene, item: Item) -> str:
    if scene.is_badge:
        return ("on the left", "in the middle", "on the right")[item.column]
    side = "left" if item.column * 2 < SCATTER_COLUMNS else "right"
    return (f"in the upper {side}", f"halfway down on the {side}", f"in the lower {side}")[item.row]
