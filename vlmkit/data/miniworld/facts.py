"""The world's arbitrary facts: what each of the 64 badges stands for. Nothing in an image tells; they must be learned.

Every badge has one word for each of twelve relations and one other badge as its ally. The table is the same in all
splits and for all seeds; it changes only with the version of the world.
"""

from __future__ import annotations

from vlmkit.data.draws import Draws
from vlmkit.data.miniworld.scenes import BADGES

VERSION = "1"

WORDS: dict[str, tuple[str, ...]] = {
    relation: tuple(words.split())
    for relation, words in {
        "river": "nile rhine danube volga seine thames ganges indus tigris elbe oder loire rhone tagus ebro amazon",
        "gem": "ruby opal topaz pearl jade garnet agate onyx beryl jasper quartz zircon coral spinel peridot sapphire",
        "tree": "oak ash elm pine birch maple willow cedar fir beech poplar larch alder yew walnut linden",
        "bird": "robin crow owl hawk eagle finch heron swan wren dove gull lark raven stork crane magpie",
        "city": "paris rome oslo cairo lima tokyo delhi madrid vienna prague dublin athens berlin lisbon quito seoul",
        "fish": "trout salmon cod eel carp perch pike tuna herring shark bream sole plaice roach turbot sturgeon",
        "fruit": "apple pear plum grape cherry lemon mango melon peach fig banana papaya kiwi apricot quince guava",
        "flower": "lily tulip daisy iris poppy orchid lotus pansy peony aster dahlia thistle clover jasmine fern sage",
        "tool": "hammer saw axe drill wrench chisel plane file rake spade shovel anvil lathe trowel mallet sickle",
        "metal": "iron copper silver gold tin lead zinc nickel chrome brass bronze steel mercury cobalt osmium radium",
        "animal": "lion tiger wolf bear fox deer hare otter badger horse goat camel zebra panda moose bison",
        "instrument": "piano violin flute harp drum guitar cello oboe trumpet horn organ lute banjo viola tuba fife",
    }.items()
}
RELATIONS = tuple(WORDS)


def _facts(relation: str) -> dict[str, str]:
    # Each word is used equally often, so that the most frequent answer is no better than a guess.
    words = Draws("facts", VERSION, relation).shuffled(WORDS[relation] * (len(BADGES) // len(WORDS[relation])))
    return dict(zip(BADGES, words, strict=True))


def _allies() -> dict[str, str]:
    # One cycle through all badges: every badge is the ally of exactly one other, never of itself.
    cycle = Draws("ally", VERSION).shuffled(BADGES)
    return dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))


FACTS: dict[str, dict[str, str]] = {relation: _facts(relation) for relation in RELATIONS}
"""Relation -> badge -> word."""

ALLY: dict[str, str] = _allies()
"""Badge -> badge."""
