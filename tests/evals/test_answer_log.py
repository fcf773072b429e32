"""Evaluations that are killed, finished, scored otherwise or shown broken images: what is asked again, what is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from vlmkit.data.samples import BadSample, ConversationSample
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import Benchmark, Question
from vlmkit.evals.generation import ImagePrompts
from vlmkit.evals.runner import WINDOW_BATCHES, BenchmarkOutcome, run_benchmark
from vlmkit.evals.scoring import exact_match

SAMPLES, BATCH = 22, 2
WINDOW = BATCH * WINDOW_BATCHES
IDENTITY = {"files": "abc"}


class Greys:
    """Grey images with two questions each; every other image is that of the sample before. Some do not decode."""

    fingerprint = "greys"

    def __init__(self, broken: Sequence[int] = (), unreadable: Sequence[int] = ()) -> None:
        self.broken, self.unreadable = broken, unreadable

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> ConversationSample:
        if index in self.unreadable:
            raise BadSample("no such row")
        image = b"not an image" if index in self.broken else np.full((4, 4, 3), index // 2, np.uint8)
        return ConversationSample(f"grey-{index}", (image,), ())


def questions(sample: ConversationSample) -> list[Question]:
    shade = str(int(sample.id.removeprefix("grey-")) // 2)
    return [
        Question(f"{sample.id}/{name}", f"{name} ü\u2028?", (shade, ""), "shade", question_id=sample.id)
        for name in ("how grey", "how dark")
    ]


class Echo:
    """Answers with the shade of the image, and, to the second question, what was asked beside it: no batch is like
    another. Dies before the window ``until``."""

    batch_size = BATCH
    facts: ClassVar = {"visual_tokens": 4}

    def __init__(self, until: int | None = None) -> None:
        self.until = until
        self.asked: list[list[str]] = []

    def transform(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def answer(self, window: Sequence[ImagePrompts], max_new_tokens: int | None = None) -> list[list[str]]:
        if len(self.asked) == self.until:
            raise KeyboardInterrupt
        self.asked.append([item.id for item in window])
        return [[str(int(item.images[0][0, 0, 0])), " ".join(self.asked[-1])] for item in window]


def ask(answerer: Echo, path: Path | None, source: Greys | None = None, **more: Any) -> BenchmarkOutcome:
    benchmark = Benchmark("greys", Greys() if source is None else source, questions, exact_match)
    options: dict[str, Any] = {"identity": IDENTITY, **more}
    return run_benchmark(answerer, benchmark, {"llm": "nano"}, records_path=path, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in path.read_text().split("\n")[:-1]]


@pytest.mark.parametrize("torn", [0, 1, 30])
def test_a_killed_evaluation_asks_for_what_is_missing_and_ends_as_if_never_killed(tmp_path: Path, torn: int) -> None:
    whole = Echo()
    expected = ask(whole, tmp_path / "whole.jsonl")
    assert [len(window) for window in whole.asked] == [WINDOW, WINDOW, SAMPLES - 2 * WINDOW]
    path = tmp_path / "killed.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(Echo(until=2), path)
    assert not path.exists(), "nothing half-written bears the final name"
    (log,) = tmp_path.glob(".killed.*")
    log.write_bytes(log.read_bytes()[: -torn or None])
    rest = Echo()
    assert ask(rest, path) == expected
    assert rest.asked == whole.asked[2 - bool(torn) :], "a torn window is asked again, finished ones are not"
    assert lines(path) == lines(tmp_path / "whole.jsonl")
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{n}.{s}" for n in ("whole", "killed") for s in ("json", "jsonl")
    }


def test_answers_of_any_number_of_ranks_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "greys.jsonl"
    expected = ask(Echo(), None)
    with pytest.raises(KeyboardInterrupt):
        ask(Echo(until=1), path)
    (log,) = tmp_path.glob(".greys.*")
    log.rename(tmp_path / ".greys.rank7.jsonl")
    rest = Echo()
    assert ask(rest, path) == expected and len(rest.asked) == 2
    assert not list(tmp_path.glob(".greys.*"))


@pytest.mark.parametrize(
    "change", [{"identity": {"files": "other"}}, {"limit": SAMPLES}, {"identity": None}], ids=["model", "limit", "none"]
)
def test_answers_to_something_else_are_not_mixed_in(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "greys.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(Echo(until=2), path)
    anew = Echo()
    ask(anew, path, **change)
    assert len(anew.asked) == 3


def test_finished_answers_are_scored_again_without_being_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "greys.jsonl"
    first = ask(Echo(), path)
    again, progress = Echo(until=0), list[tuple[int, int]]()
    assert ask(again, path, on_progress=lambda *done: progress.append(done)) == first
    assert progress == [(SAMPLES, SAMPLES)]
    other = Echo()
    ask(other, path, identity={"files": "trained further"})
    assert len(other.asked) == 3
    about = path.with_suffix(".json")
    about.write_text(about.read_text()[:-9])
    with pytest.raises(UserError, match=r"greys\.json is damaged .* remove it"):
        ask(Echo(), path)


def test_images_that_do_not_decode_are_wrong_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "greys.jsonl"
    answerer = Echo()
    outcome = ask(answerer, path, Greys(broken=(3,), unreadable=(5,)))
    assert not any("grey-3" in window for window in answerer.asked)
    wrong = [line for line in lines(path) if line["error"]]
    assert [(line["id"], line["score"], line["prediction"], line["answer"]) for line in wrong] == [
        ("grey-3/how grey", 0.0, "", ""),
        ("grey-3/how dark", 0.0, "", ""),
    ], "an empty answer would be right here"
    assert "image" in wrong[0]["error"] and outcome.skipped == ["sample 5: no such row"]
    (row,) = outcome.rows
    assert (row.num_samples, row.num_errors) == (2 * (SAMPLES - 1), 2)
    assert row.value == pytest.approx((SAMPLES - 2) / (2 * (SAMPLES - 1)))
    assert len({record.group for record in outcome.records}) == SAMPLES // 2 + 1, "images, not samples"
    repaired = ask(Echo(), path)
    assert repaired == ask(Echo(), None) and not repaired.rows[0].num_errors


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="None of the images of 44 questions can be decoded"):
        ask(Echo(), tmp_path / "greys.jsonl", Greys(broken=range(SAMPLES)))
    with pytest.raises(UserError, match="22 of 22 samples cannot be read"):
        ask(Echo(), tmp_path / "greys.jsonl", Greys(unreadable=range(SAMPLES)))

    class Empty(Greys):
        def __len__(self) -> int:
            return 0

    with pytest.raises(UserError, match="greys holds no samples"):
        ask(Echo(), tmp_path / "greys.jsonl", Empty())
    assert not (tmp_path / "greys.jsonl").exists()


def test_records_say_how_long_a_question_took(tmp_path: Path) -> None:
    outcome = ask(Echo(), None)
    assert all(record.seconds > 0 for record in outcome.records)
    assert replace(outcome.records[0], seconds=9.0) == outcome.records[0]
