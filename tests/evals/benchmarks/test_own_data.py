"""What each benchmark asks, and where its samples come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlmkit.data.miniworld import MiniWorld
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import open_benchmark


def test_miniworld_asks_every_question_of_the_test_scenes_as_it_stands() -> None:
    benchmark = open_benchmark("miniworld")
    world = MiniWorld("test", 500)
    assert (benchmark.name, len(benchmark.samples), benchmark.samples.fingerprint) == (
        "miniworld",
        500,
        world.fingerprint,
    )
    asked = benchmark.questions(benchmark.samples[7])
    assert [(q.prompt, q.references, q.family) for q in asked] == [(q, (a,), f) for q, a, f in world.questions(7)]
    assert len({question.id for question in asked}) == len(asked)


def test_miniworld_takes_another_split_and_size() -> None:
    benchmark = open_benchmark("miniworld:val?scenes=3")
    assert benchmark.samples.fingerprint == MiniWorld("val", 3).fingerprint


@pytest.fixture
def records(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    turns = [
        {"from": "human", "value": "<image>\nIs it dark?"},
        {"from": "gpt", "value": "Yes"},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "No light"},
    ]
    path = tmp_path / "test.json"
    path.write_text(
        json.dumps(
            [
                {"id": "typed", "image": "a.png", "question_type": "yes_no", "conversations": turns[:2]},
                {"id": "dialogue", "image": "a.png", "conversations": turns},
            ]
        )
    )
    return path


def test_llava_json_asks_the_first_question_of_each_record(records: Path) -> None:
    benchmark = open_benchmark(f"llava:{records}")
    (typed,), (dialogue,) = (benchmark.questions(benchmark.samples[index]) for index in range(2))
    assert (typed.id, typed.prompt, typed.references, typed.family) == (
        "typed",
        "<image>\nIs it dark?",
        ("Yes",),
        "yes_no",
    )
    assert (dialogue.id, dialogue.prompt, dialogue.family) == ("dialogue", "<image>\nIs it dark?", "all")
    assert benchmark.rule.score(typed.case("yes.")) == 1.0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("gqua", "'gqua' is not a benchmark for VLMs; did you mean gqa"),
        ("llava", "llava:FILE"),
        ("llava:nowhere.json", "nowhere.json cannot be read"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_sentence(task: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_benchmark(task)
