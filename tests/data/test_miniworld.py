"""The embedded world: disjoint splits, determinism; images, captions, answers and labels tell the same scene."""

from __future__ import annotations

import hashlib
import pickle
import random
import re
import time
from collections import Counter
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageColor

from vlmkit.data.draws import Draws
from vlmkit.data.miniworld import FAMILIES, VERSION, MiniWorld
from vlmkit.data.miniworld.drawing import draw_image
from vlmkit.data.miniworld.facts import ALLY, FACTS, RELATIONS, WORDS
from vlmkit.data.miniworld.scenes import BADGES, CHARACTERS, COLORS, SHAPES, Item, Scene, split_of
from vlmkit.errors import UserError

SPLITS = ("train", "val", "test")


def contents(split: str, scenes: int, seed: int = 0) -> set[str]:
    world = MiniWorld(split, scenes, seed)
    return {world.scene(index).content for index in range(scenes)}


def test_splits_share_no_scene_under_any_seed() -> None:
    drawn = {split: contents(split, 8000, seed=0) | contents(split, 4000, seed=1) for split in SPLITS}
    assert not drawn["train"] & drawn["val"] and not drawn["train"] & drawn["test"] and not drawn["val"] & drawn["test"]
    # The control: without owners the splits would collide, as two seeds of one split do.
    assert len(contents("train", 4000, seed=0) & contents("train", 4000, seed=1)) > 50


def test_every_scene_has_one_owner_whatever_is_drawn_on_top() -> None:
    unsigned = [Scene((Item(c, s, column, 0),), "") for c, s, column in product(COLORS, SHAPES, range(3))]
    assert len({scene.content for scene in unsigned}) == 8 * 8 * 3
    assert {split_of(scene) for scene in unsigned} == set(SPLITS)
    for split in SPLITS:
        world = MiniWorld(split, 300, seed=7, image_size=96)
        assert {split_of(world.scene(index)) for index in range(300)} == {split}


def test_scenes_are_a_function_of_split_seed_and_index() -> None:
    world, copy = MiniWorld("val", 50), pickle.loads(pickle.dumps(MiniWorld("val", 9000)))
    for index in reversed(range(50)):
        assert np.array_equal(world.image(index), copy.image(np.int64(index)))
        assert world.captions(index) == copy.captions(index)
        assert world.questions(index) == copy.questions(index)
    other = MiniWorld("val", 50, seed=1)
    assert sum(world.scene(index) == other.scene(index) for index in range(50)) < 5


def test_no_global_generator_is_read_or_advanced() -> None:
    before = random.getstate(), np.random.get_state()[1].tobytes()
    world = MiniWorld("train", 10)
    world.image(3), world.captions(3), world.questions(3)
    assert before == (random.getstate(), np.random.get_state()[1].tobytes())


def test_the_world_of_version_1_is_frozen() -> None:
    """Results carry the version: whoever changes text, scenes or facts must raise it, and this digest."""
    digest = hashlib.blake2b(repr((FACTS, ALLY)).encode(), digest_size=8)
    for split in SPLITS:
        world = MiniWorld(split, 100)
        for index in range(100):
            digest.update(repr((world.scene(index), world.captions(index), world.questions(index))).encode())
    assert (VERSION, digest.hexdigest()) == ("1", "b9371cd6ecdb8790")


@pytest.mark.parametrize("image_size", [64, 96, 128])
def test_an_image_is_uint8_rgb_of_the_asked_size(image_size: int) -> None:
    image = MiniWorld("train", 1, image_size=image_size).image(0)
    assert image.dtype == np.uint8 and image.shape == (image_size, image_size, 3)


def test_larger_images_show_the_same_scene() -> None:
    small, large = MiniWorld("train", 20), MiniWorld("train", 20, image_size=128)
    for index in range(20):
        reduced = np.asarray(Image.fromarray(large.image(index)).resize((64, 64), Image.Resampling.BOX), float)
        # Above the sign: hinting draws small letters differently from large ones.
        assert np.corrcoef(reduced[:48].ravel(), small.image(index)[:48].ravel())[0, 1] > 0.95
        assert large.questions(index) == small.questions(index) and large.captions(index) == small.captions(index)


def test_the_badge_has_the_colour_that_its_label_says() -> None:
    world = MiniWorld("train", 300)
    palette = np.array([ImageColor.getrgb(color) for color in COLORS], float)
    for index in range(300):
        if world.scene(index).is_badge:
            upper = world.image(index)[:50].reshape(-1, 3).astype(float)
            color = np.median(upper[upper.max(axis=1) > 130], axis=0)
            assert (
                world.classes["color"][world.labels(index)["color"]]
                == COLORS[np.linalg.norm(palette - color, axis=1).argmin()]
            )


def test_the_eight_shapes_look_different() -> None:
    images = [draw_image(Scene((Item("white", shape, 1, 0),), ""), 64, Draws("same")).astype(float) for shape in SHAPES]
    for one, other in product(range(8), range(8)):
        assert one == other or np.abs(images[one] - images[other]).mean() > 3


@pytest.mark.parametrize("image_size", [64, 128])
def test_a_sign_puts_one_character_in_each_patch_column_from_the_left(image_size: int) -> None:
    items, width = (Item("red", "star", 1, 0),), image_size // 8
    bare = draw_image(Scene(items, ""), image_size, Draws("same"))
    signed = draw_image(Scene(items, CHARACTERS[:6]), image_size, Draws("same"))
    rows, columns = np.nonzero((signed != bare).any(axis=2))
    assert columns.max() == 6 * width - 1 and columns.min() == 0
    assert rows.min() >= image_size * 3 // 4 and rows.max() == image_size - 1
    glyphs = set()
    for character in CHARACTERS:
        image = draw_image(Scene(items, character * 3), image_size, Draws("same"))
        first, second, third = (image[rows.min() :, start : start + width].tobytes() for start in (0, width, 2 * width))
        assert first == second == third
        glyphs.add(first)
    assert len(glyphs) == len(CHARACTERS) == 12


def test_captions_are_about_the_scene_and_never_about_its_facts() -> None:
    world = MiniWorld("train", 1000)
    facts = {word for words in WORDS.values() for word in words}
    texts, spelled, signed = [], 0, 0
    for index in range(1000):
        scene, captions = world.scene(index), world.captions(index)
        assert len(captions) == 3
        texts += captions
        for caption in captions:
            words = set(re.findall(r"\w+", caption.lower()))
            assert not words & facts
            assert words & set(COLORS) <= {item.color for item in scene.items}
            spelled += bool(scene.sign) and " ".join(scene.sign) in caption
            signed += bool(scene.sign)
    assert 0.5 < spelled / signed < 0.95, "most captions tell the sign, some leave it out"
    assert len({word for text in texts for word in re.findall(r"\w+", text.lower())}) > 200
    assert len(set(texts)) > 0.9 * len(texts)


def test_a_few_captions_are_longer_than_clip_reads() -> None:
    # A word or a mark is at least one CLIP token; 77 positions leave 75 beside the start and end marks.
    world = MiniWorld("train", 1000)
    lengths = [len(re.findall(r"\w+|[^\w\s]", caption)) for index in range(1000) for caption in world.captions(index)]
    assert 0.005 < np.mean(np.array(lengths) > 75) < 0.1


def answer(scene: Scene, question: str) -> str:
    """An independent reader of the drawn part of the scene; "" for what it cannot read (facts)."""
    numbers = ["zero", "one", "two", "three", "four", "five", "six"]
    colors, shapes = [item.color for item in scene.items], [item.shape for item in scene.items]
    singular = {f"{shape}{'es' if shape == 'cross' else 's'}": shape for shape in SHAPES}
    words = question.split()
    extremes = {
        "leftmost": min(scene.items, key=lambda item: item.column),
        "rightmost": max(scene.items, key=lambda item: item.column),
        "highest": min(scene.items, key=lambda item: item.row),
        "lowest": max(scene.items, key=lambda item: item.row),
    }
    if re.search(r"say|spell|written|read the sign", question):
        return " ".join(scene.sign)
    if "last" in words:
        return scene.sign[-1]
    if position := re.search(r"\d", question):
        return scene.sign[int(position.group()) - 1]
    if words[0] in ("how", "count"):
        if "letters" in words or "long" in words:
            return numbers[len(scene.sign)]
        kinds = [word for word in words if word in COLORS] + [singular[word] for word in words if word in singular]
        return numbers[sum(not kinds or kinds[0] in (item.color, item.shape) for item in scene.items)]
    for word, item in extremes.items():
        if word in words:
            return item.color if "color" in words else item.shape
    if scene.is_badge and ("color" in words or "shape" in words):
        return colors[0] if "color" in words else shapes[0]
    for word in words:
        if word in colors and colors.count(word) == 1:
            return shapes[colors.index(word)]
        if word in shapes and shapes.count(word) == 1:
            return colors[shapes.index(word)]
    return ""


def test_answers_are_right_and_families_apply() -> None:
    world, families = MiniWorld("test", 3000), Counter[str]()
    for index in range(3000):
        scene, questions = world.scene(index), world.questions(index)
        assert 2 <= len(questions) <= 9
        asked = {question.family for question in questions}
        assert ("reasoning" in asked) == scene.is_badge and ("ocr" in asked) == bool(scene.sign)
        for question, expected, family in questions:
            families[family] += 1
            assert expected and expected == expected.lower()
            assert family == "reasoning" or answer(scene, question) == expected, (scene, question)
    assert set(families) == set(FAMILIES) and min(families.values()) > 4000


def test_the_facts_are_balanced_and_the_ally_is_another_badge() -> None:
    for relation in RELATIONS:
        assert set(FACTS[relation]) == set(BADGES)
        assert set(Counter(FACTS[relation].values()).values()) == {4}
    assert len(RELATIONS) == 12 and len({word for words in WORDS.values() for word in words}) == 12 * 16
    assert sorted(ALLY.values()) == sorted(BADGES) and all(badge != ally for badge, ally in ALLY.items())


def facts_asked(split: str, scenes: int) -> dict[tuple[str, str, bool], str]:
    """(badge, relation, asked about the ally?) -> answer; the relation is "ally" where the ally itself is asked for."""
    world, asked = MiniWorld(split, scenes), {}
    for index in range(scenes):
        for question, expected, family in world.questions(index):
            if family == "reasoning":
                relation = next((word for word in question.split() if word in RELATIONS), "ally")
                key = (world.scene(index).badge, relation, "ally" in question)
                assert asked.setdefault(key, expected) == expected
    return asked


def test_every_fact_asked_of_val_and_test_can_be_learned_in_train() -> None:
    train = facts_asked("train", 16000)
    assert len(train) == 64 * (12 + 12 + 1)
    for split in ("val", "test"):
        held_out = facts_asked(split, 1000)
        assert len(held_out) > 1000 and held_out.items() <= train.items()


def test_labels_name_what_is_in_the_scene() -> None:
    world = MiniWorld("train", 500)
    for index in range(500):
        scene = world.scene(index)
        named = {attribute: world.classes[attribute][label] for attribute, label in world.labels(index).items()}
        number = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}.get(len(scene.items))
        expected = {"count": number} if number else {"color": scene.items[0].color, "shape": scene.items[0].shape}
        if scene.sign:
            expected["first_character"] = scene.sign[0]
        assert named == expected


def test_the_fingerprint_tells_all_arguments() -> None:
    worlds = [("train", 100), ("val", 100), ("train", 101), ("train", 100, 1), ("train", 100, 0, 96)]
    assert len({MiniWorld(*arguments).fingerprint for arguments in worlds}) == len(worlds)
    assert MiniWorld("train", 100).fingerprint == MiniWorld("train", 100, 0, 64).fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev", "scenes": 10}, "train, val, test"),
        ({"split": "train", "scenes": 0}, "1 or more"),
        ({"split": "train", "scenes": 10, "image_size": 100}, "multiple of 32"),
        ({"split": "train", "scenes": 10, "image_size": 32}, "64"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MiniWorld(**arguments)


@pytest.mark.parametrize("index", [-1, 10])
def test_there_is_no_scene_beyond_the_last(index: int) -> None:
    with pytest.raises(IndexError):
        MiniWorld("train", 10).image(index)


@pytest.mark.slow
def test_two_cores_make_a_hundred_thousand_scenes_a_minute() -> None:
    world = MiniWorld("train", 10**6)
    for index in range(1000):  # draw the stamps
        world.image(index)
    start = time.process_time()
    for index in range(3000):
        world.image(index), world.captions(index), world.questions(index)
    assert 3000 / (time.process_time() - start) > 100_000 / 60 / 2
