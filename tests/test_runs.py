"""The run directory: what may be resumed, what is refused, what survives a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vlmkit.errors import UserError
from vlmkit.recipe import load_recipe
from vlmkit.runs import ResultRow, RunDirectory, files_stamp, is_run, open_model, write_atomically

DATA = {"train": "abc"}


def row(**changes: object) -> ResultRow:
    base = {
        "benchmark": "miniworld",
        "family": "ocr",
        "metric": "exact_match",
        "value": 0.5,
        "num_samples": 10,
        "stderr": 0.1,
        "data_revision": "1",
        "scoring": "vlmkit",
    }
    return ResultRow(**{**base, **changes})  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.prepare(load_recipe("pretrain-superclass", None, {"train.steps": 10}), DATA, {"device": "cpu"})
    return run


def test_prepare_writes_recipe_and_provenance(run: RunDirectory) -> None:
    assert is_run(run.path) and run.recipe() == load_recipe("pretrain-superclass", None, {"train.steps": 10})
    provenance = json.loads(run.provenance_path.read_text())
    assert provenance["data"] == DATA and provenance["versions"]["torch"]


def test_the_same_recipe_resumes_and_another_is_refused_untouched(run: RunDirectory) -> None:
    run.prepare(load_recipe("pretrain-superclass", None, {"train.steps": 20}), DATA, {})
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        run.prepare(load_recipe("pretrain-superclass", None, {"train.steps": 10, "seed": 1}), DATA, {})
    with pytest.raises(UserError, match=r"train data of .* changed"):
        run.prepare(load_recipe("pretrain-superclass", None, {"train.steps": 10}), {"train": "other"}, {})
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and is not a run"):
        RunDirectory(tmp_path).prepare(load_recipe("train-vlm", None, {}), DATA, {})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_model_appears_whole_or_not_at_all(run: RunDirectory) -> None:
    with pytest.raises(RuntimeError), run.writing_model() as scratch:
        (scratch / "weights").write_text("half")
        raise RuntimeError("power cut")
    assert not run.finished and not list(run.path.glob(".model*"))
    with run.writing_model() as scratch:
        (scratch / "weights").write_text("whole")
    assert (run.model_dir / "weights").read_text() == "whole"


def test_opening_a_model_explains_what_is_wrong(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        open_model(tmp_path / "nowhere", "train-vlm")
    with pytest.raises(UserError, match="is a pretrain-superclass run"):
        open_model(run.path, "train-vlm")
    with pytest.raises(UserError, match="has not finished"):
        open_model(run.path, "pretrain-superclass")
    run.recipe_path.write_text("command: teleport\n")
    with pytest.raises(UserError, match="names no vlmkit command"):
        open_model(run.path, "train-vlm")


def test_newer_results_replace_older_ones_of_the_same_key(run: RunDirectory) -> None:
    run.append_results([row(), row(family="count")])
    run.append_results([row(value=0.75)])
    assert [(r.family, r.value) for r in run.results()] == [("ocr", 0.75), ("count", 0.5)]


def test_a_damaged_results_file_is_named_with_its_line(run: RunDirectory) -> None:
    run.append_results([row()])
    with run.results_path.open("a") as file:
        file.write('{"benchmark": ')
    with pytest.raises(UserError, match=r"results\.jsonl, line 2"):
        run.results()


def test_atomic_writes_leave_no_scratch_files(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.txt", "one")
    write_atomically(tmp_path / "a" / "b.txt", "two")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").read_text() == "two"


def test_the_stamp_of_a_model_tells_when_a_file_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = files_stamp(tmp_path)
    (tmp_path / "results.jsonl").write_text("{}")
    (tmp_path / "samples").mkdir()
    assert files_stamp(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"others!")
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert files_stamp(tmp_path) != before
