"""Opening sources by their specification: the real sets, the embedded world, and everything that can be wrong."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_files import tar_bytes

from vlmkit import registry
from vlmkit.data.miniworld import MiniWorld
from vlmkit.data.samples import BadSample, Turn
from vlmkit.data.sources import opener
from vlmkit.data.sources.opener import open_captions, open_conversations, open_labelled
from vlmkit.errors import UserError


def write_json(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return f"llava:{path}"


def record(*values: str, **fields: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"id": "x", "conversations": turns, **fields}


# --- specifications ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opener", "spec", "message"),
    [
        (open_captions, "shards/a.tar", "is not a source; write KIND:WHERE, where KIND is one of miniworld, wds"),
        (
            open_captions,
            "folder:x",
            "no kind of source for captions; use one of miniworld, wds, csv, parquet, jsonl, hf",
        ),
        (open_conversations, "wds:x", "no kind of source for conversations; use one of miniworld, llava, jsonl, hf"),
        (open_labelled, "llava:x", "no kind of source for labels; use one of miniworld, folder"),
        (open_captions, "miniworld:train?scens=10", "no option 'scens'; did you mean scenes"),
        (open_captions, "miniworld:train?scenes=many", "scenes of .* must be a whole number, not 'many'"),
        (open_captions, "miniworld:train?scenes=0", "scenes"),
        (open_captions, "miniworld:practice", "no split 'practice'"),
        (open_captions, "wds:x?allow_truncated=maybe", "must be 0 or 1, not 'maybe'"),
        (open_labelled, "folder:x?a=b", "no option 'a'; it has: none"),
    ],
)
def test_wrong_specifications(opener: Callable[[str], Any], spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opener(spec)


def test_the_registry_lists_what_can_be_opened() -> None:
    tables = {"captions": opener._CAPTIONS, "conversations": opener._CONVERSATIONS, "labels": opener._LABELS}
    for entry in registry.DATASETS.values():
        assert set(entry.serves) == {purpose for purpose, kinds in tables.items() if entry.name in kinds}
    assert {name for kinds in tables.values() for name in kinds} == set(registry.DATASETS)


# --- the embedded world -----------------------------------------------------------------------------------------------


def test_miniworld_in_its_three_roles() -> None:
    spec = "miniworld:val?scenes=7&seed=2&image_size=96"
    world = MiniWorld("val", 7, 2, 96)
    captions, conversations, labels = open_captions(spec), open_conversations(spec), open_labelled(spec)
    assert len(captions) == len(conversations) == len(labels) == 7
    assert captions[3].captions == captions.captions_only(3) == world.captions(3)
    assert (captions[3].image == world.image(3)).all()
    assert conversations[3].independent
    assert conversations[3].turns == tuple(Turn(*question) for question in world.questions(3))
    assert labels[3].labels == world.labels(3)
    assert labels.classes == world.classes
    assert captions.fingerprint == world.fingerprint != open_captions("miniworld:val?scenes=7").fingerprint


def test_miniworld_default_sizes() -> None:
    assert [len(open_captions(f"miniworld:{split}")) for split in ("train", "val", "test")] == [16000, 2000, 2000]


# --- LLaVA JSON -------------------------------------------------------------------------------------------------------


def test_real_conversations(shared_data: Path) -> None:
    spec = f"llava:{shared_data}/vqa/"
    train, test = open_conversations(spec + "train.json"), open_conversations(spec + "test.json")
    assert (len(train), len(test)) == (903, 301)
    families = Counter(turn.family for index in range(len(test)) for turn in test[index].turns)
    assert families == {"yes_no": 151, "short_answer": 104, "multiple_choice": 46}
    raw = json.loads((shared_data / "vqa" / "test.json").read_text())
    for index in (0, 150, 300):
        sample, (human, gpt) = test[index], raw[index]["conversations"]
        assert sample.id == raw[index]["id"]
        assert not sample.independent
        assert sample.turns == (Turn(human["value"], gpt["value"], raw[index]["question_type"], (gpt["value"],)),)
        assert sample.read_images() == [(shared_data / "vqa" / raw[index]["image"]).read_bytes()]
    assert train.fingerprint != test.fingerprint


def test_dialogues_several_images_and_text_only(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in "ab":
        (tmp_path / "pictures" / name).write_bytes(name.encode())
    spec = write_json(
        tmp_path / "a.json",
        [
            record("<image>\nq1", "a1", "q2 ü", "a2", image="a"),
            record("<image> or <image>?", "both", image=["b", "a"], question_type="choice", id=7),
            record("hello", "hi"),
        ],
    )
    source = open_conversations(spec + f"?images={tmp_path}/pictures")
    assert [source[i].read_images() for i in range(3)] == [[b"a"], [b"b", b"a"], []]
    assert source[0].turns == (Turn("<image>\nq1", "a1", "all"), Turn("q2 ü", "a2", "all"))
    assert (source[1].id, source[1].turns[0].family) == ("7", "choice")
    with pytest.raises(UserError, match=r"images of .* are not there, e\.g\. .*\?images=DIR"):
        open_conversations(spec)


@pytest.mark.parametrize(("kind", "name"), [("llava", "a.jsonl"), ("jsonl", "a.txt")])
def test_records_in_lines_and_messages_by_role(tmp_path: Path, kind: str, name: str) -> None:
    for image in "ab":
        (tmp_path / image).write_bytes(image.encode())
    parts = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}, {"type": "text", "text": "?"}]
    by_role = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    lines = [
        record("q1", "a1", "q2", "a2", image="a"),
        {"messages": [*by_role, {"role": "assistant", "content": "both"}], "images": ["b", "a"]},
        record("hello", "hi"),
    ]
    (tmp_path / name).write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    source = open_conversations(f"{kind}:{tmp_path}/{name}")
    assert [source[i].read_images() for i in range(3)] == [[b"a"], [b"b", b"a"], []]
    assert [turn.answer for turn in source[0].turns] == ["a1", "a2"]
    assert source[1].turns == (Turn("Be brief.\n\n<image>\nor\n<image>\n?", "both", "all"),)


def test_a_missing_image_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    source = open_conversations(
        write_json(tmp_path / "a.json", [record("q", "a", image="a.png"), record("q", "a", image="b.png")])
    )
    assert source[0].read_images() == [b"a"]
    text_alone = source[1]
    with pytest.raises(BadSample, match=r"b\.png cannot be read"):
        text_alone.read_images()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ({"conversations": []}, "holds one dict"),
        ([], "holds no records"),
        ([record("q", "a"), "text"], "Record 1 of .* is not an object"),
        ([record("q", "a"), {"id": "bad"}], r"no turns in record 1 \(id bad\)"),
        ([record()], "no turns in record 0"),
        ([record("q", "a", "q")], "last question of record 0 .* has no answer"),
        ([{"conversations": [{"from": "gpt", "value": "a"}]}], "Turn 0 of record 0 .* is not from human"),
        ([{"conversations": [{"from": "human", "value": "q"}] * 2}], "Turn 1 of record 0 .* is not from gpt"),
        ([{"conversations": [{"from": "human", "value": 3}]}], "Turn 0 of record 0 .* no text"),
        ([{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}], "Turn 0 of record 0 .* no text"),
        ([{"messages": [{"role": "tool", "content": "q"}]}], "Turn 0 of record 0 .* is not from user"),
        ([{"conversations": ["q", "a"]}], "Turn 0 of record 0 .* has neither"),
        ([record("q", "a", image=5)], "image of record 0 .* neither a path nor a list"),
        ([record("<image> q", "a")], r"1 places for an image .* but 0 images in record 0"),
    ],
)
def test_malformed_conversations(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_conversations(write_json(tmp_path / "a.json", content))


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.json cannot be read \(No such file"):
        open_conversations(f"llava:{tmp_path}/nothing.json")


def test_json_fingerprint_sees_text_and_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    spec = write_json(tmp_path / "a.json", [record("q", "a", image="a.png")])
    first = open_conversations(spec).fingerprint
    assert open_conversations(spec).fingerprint == first
    (tmp_path / "a.png").write_bytes(b"longer")
    second = open_conversations(spec).fingerprint
    write_json(tmp_path / "a.json", [record("q", "b", image="a.png")])
    assert len({first, second, open_conversations(spec).fingerprint}) == 3


# --- labelled folders -------------------------------------------------------------------------------------------------


def test_real_labels(shared_data: Path) -> None:
    spec = f"folder:{shared_data}/clothing/"
    train, test = open_labelled(spec + "train"), open_labelled(spec + "test")
    names = (shared_data / "clothing" / "classes.txt").read_text().split()
    assert train.classes == test.classes == {"class": names}
    assert Counter(train[i].labels["class"] for i in range(len(train))) == dict.fromkeys(range(10), 100)
    assert len(test) == 372
    first = shared_data / "clothing" / "test" / "dress" / "dress-001.jpg"
    assert (test[0].image, test[0].labels) == (first.read_bytes(), {"class": 0})


def test_classes_are_sorted_unless_listed(tmp_path: Path) -> None:
    for name in ("zebra", "ant", ".hidden"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.PNG").write_bytes(name.encode())
        (tmp_path / "train" / name / "notes.txt").write_bytes(b"no image")
    source = open_labelled(f"folder:{tmp_path}/train")
    assert source.classes == {"class": ["ant", "zebra"]}
    assert [(source[i].image, source[i].labels["class"]) for i in range(len(source))] == [(b"ant", 0), (b"zebra", 1)]
    (tmp_path / "classes.txt").write_text("zebra\nmule\nant\n")
    listed = open_labelled(f"folder:{tmp_path}/train")
    assert [listed[i].labels["class"] for i in range(2)] == [2, 0]
    assert listed.fingerprint != source.fingerprint
    (tmp_path / "classes.txt").write_text("zebra\n")
    with pytest.raises(UserError, match=r"train/ant is not a class of .*classes\.txt"):
        open_labelled(f"folder:{tmp_path}/train")


def test_missing_or_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        open_labelled(f"folder:{tmp_path}/nothing")
    (tmp_path / "classless").mkdir()
    with pytest.raises(UserError, match="No images found"):
        open_labelled(f"folder:{tmp_path}/classless")


# --- all of them ------------------------------------------------------------------------------------------------------


def test_sources_pickle(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({"1.jpg": b"x", "1.txt": b"y"}))
    spec = write_json(tmp_path / "a.json", [record("q", "a")])
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(b"x")
    opened = [
        open_captions(f"wds:{tmp_path}/a.tar"),
        open_captions("miniworld:val?scenes=2"),
        open_conversations(spec),
        open_labelled(f"folder:{tmp_path}/train"),
    ]
    for source in opened:
        copy = pickle.loads(pickle.dumps(source))
        assert len(copy) == len(source)
        assert copy.fingerprint == source.fingerprint
        for name, value in vars(source[0]).items():
            assert np.array_equal(getattr(copy[0], name), value)
