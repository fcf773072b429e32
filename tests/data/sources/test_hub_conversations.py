"""Conversations from data sets that `datasets` loads, here from local folders: nothing touches the hub."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from transformers import AutoTokenizer

from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.samples import Turn
from vlmkit.data.sources.opener import open_conversations
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.errors import UserError


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def stored(*colors: str) -> list[dict[str, Any]]:
    return [{"bytes": png(color), "path": None} for color in colors]


def llava(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def by_role(*values: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": value} for i, value in enumerate(values)]


def paired(*values: str) -> list[dict[str, str]]:
    return [{"user": q, "assistant": a, "source": "x"} for q, a in zip(values[::2], values[1::2], strict=True)]


def transposed(*values: str) -> dict[str, list[str]]:
    return {"from": [("human", "gpt")[i % 2] for i in range(len(values))], "value": list(values)}


@pytest.mark.parametrize(
    ("column", "write"),
    [
        ("conversations", llava),
        ("messages", by_role),
        ("texts", paired),
        ("conversations", transposed),
        ("conversations", lambda *values: json.dumps(llava(*values))),
    ],
    ids=["llava", "roles", "pairs", "lists of fields", "json"],
)
def test_columns_of_conversations(tmp_path: Path, column: str, write: Any) -> None:
    """One image, several, and text alone in one set; images are not decoded on the way."""
    rows = {
        "images": [stored("red"), stored("blue", "lime"), []],
        column: [write("q1", "a1", "q2", "a2"), write("<image> or <image>", "both"), write("hello", "hi")],
        "id": ["one", None, "three"],
    }
    data = datasets.Dataset.from_dict(rows).cast_column("images", datasets.List(datasets.Image()))
    data.save_to_disk(str(tmp_path / "set"))
    source = open_conversations(f"hf:{tmp_path}/set")
    assert [source[i].turns for i in range(3)] == [
        (Turn("q1", "a1", "all"), Turn("q2", "a2", "all")),
        (Turn("<image> or <image>", "both", "all"),),
        (Turn("hello", "hi", "all"),),
    ]
    assert [source[i].read_images() for i in range(3)] == [[png("red")], [png("blue"), png("lime")], []]
    assert [source[i].id for i in range(3)] == ["one", f"{tmp_path}/set:1", "three"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[1].turns == source[1].turns and copy.fingerprint == source.fingerprint


def test_questions_and_answers_from_parquet(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = {
        "image": [*stored("red"), None],
        "question": ["what", "why"],
        "answers": [["red", "scarlet", "red"], ["so"]],
        "question_type": ["colour", None],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "train-0.parquet")
    source = open_conversations(f"hf:{tmp_path}/set")
    assert source[0].turns == (Turn("what", "red", "colour", ("red", "scarlet")),)
    assert source[0].read_images() == [png("red")] and source[1].read_images() == []
    assert source[1].turns[0].family == "all"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"messages": [by_role("q", "a"), by_role("q")]}, "", r"last question of row 1 of .*set has no answer"),
        ({"messages": [[{"role": "assistant", "content": "a"}]]}, "", r"Turn 0 of row 0 of .* is not from user"),
        ({"conversations": ["no json"]}, "", r"no turns in row 0"),
        ({"question": ["q"], "answer": [3]}, "", r"question or the answer of row 0 .* is not a text"),
        ({"words": ["q"]}, "", r"no column that is called like one of conversations or questions; .* of: words"),
        ({"question": ["q"], "words": ["a"]}, "", r"no column that is called like one of answers; .*\?answer="),
        ({"question": ["q"]}, "?conversations=turns", r"has no column 'turns'"),
        ({"question": ["q"], "answer": ["a"]}, "?image=photo", r"has no column 'photo'"),
    ],
)
def test_rows_and_columns_that_are_wrong_are_named(
    tmp_path: Path, rows: dict[str, Any], options: str, message: str
) -> None:
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match=message):
        open_conversations(f"hf:{tmp_path}/set{options}")


@pytest.mark.parametrize("kind", ["hf", "llava", "jsonl"])
def test_a_row_that_trains_nothing_is_named_whatever_the_source(tmp_path: Path, kind: str) -> None:
    rows = [{"conversations": llava("q", answer)} for answer in ("a", " ")]
    if kind == "hf":
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "set"))
    else:
        text = json.dumps(rows) if kind == "llava" else "\n".join(map(json.dumps, rows))
        (tmp_path / "set").write_text(text)
    source = open_conversations(f"{kind}:{tmp_path}/set")
    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(DIRECTORY), 4, 64)
    assert encoder.encode(source[0])
    with pytest.raises(UserError, match=r"Sample (.*set:)?1 has an empty answer and trains nothing"):
        encoder.encode(source[1])


def test_the_fingerprint_sees_turns_and_images(tmp_path: Path) -> None:
    fingerprints = set()
    for name, answer, image in (("0", "a", "red"), ("1", "b", "red"), ("2", "a", "blue")):
        rows = {"image": stored(image), "question": ["q"], "answer": [answer]}
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / name))
        fingerprints.add(open_conversations(f"hf:{tmp_path}/{name}").fingerprint)
    assert len(fingerprints) == 3
