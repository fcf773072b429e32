"""``vlmkit eval --compare``: what several runs scored, and their paired differences."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlmkit.cli.app import app
from vlmkit.errors import UserError
from vlmkit.evals import statistics
from vlmkit.evals.benchmarks import Benchmark
from vlmkit.evals.records import RecordsFile, SampleRecord
from vlmkit.evals.rows import rows_of
from vlmkit.evals.scoring import pope
from vlmkit.evals.statistics import mean_and_stderr, paired_difference
from vlmkit.pipelines.evaluation.compare import compare
from vlmkit.runs import ResultRow, RunDirectory

RIGHT = {"a": 0.6, "b": 0.7}
IMAGES = 120


def record(number: int, right: bool) -> SampleRecord:
    """A question about an image of its own; half the answers are yes."""
    truth = ("yes", "no")[number % 2]
    said = truth if right else ("no", "yes")[number % 2]
    return SampleRecord(
        str(number), "pope", "?", said, said, (truth,), float(right), (), "random", group=f"image {number}"
    )


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[SampleRecord]]:
    """Two VLMs on the same questions, b right wherever a is, and a tower."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(statistics, "MAX_RESAMPLES", 200)
    source: Any = SimpleNamespace(fingerprint="abcdefghij")
    benchmark = Benchmark("pope", source, lambda sample: [], pope)
    ease = np.random.default_rng(0).permutation(IMAGES) / IMAGES
    records = {}
    for name, share in RIGHT.items():
        records[name] = [record(number, bool(ease[number] < share)) for number in range(IMAGES)]
        run, model = RunDirectory(name), {"llm": "nano", "visual_tokens": 4}
        run.append_results(rows_of(benchmark, records[name], None, model))
        about = {"benchmark": "pope", "data_revision": "abcdefghij", "limit": None, "model": model}
        RecordsFile(run.samples_dir / "pope.jsonl").write(records[name], {**about, "scoring": "official"})
    RunDirectory("tower").append_results([ResultRow("knn", "color", "accuracy", 0.5, 9, 0.1, "d", "cosine_knn")])
    return records


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    app(["eval", "--compare", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_paired_differences_are_those_of_the_same_questions(runs: dict[str, list[SampleRecord]]) -> None:
    lines = {(line.measured.benchmark, line.measured.metric): line for line in compare(map_paths("a", "b")).lines}
    scores = {name: [r.score for r in records] for name, records in runs.items()}
    gain, stderr = paired_difference(scores["b"], scores["a"])
    accuracy = lines["pope", "accuracy"].differences["b"]
    assert accuracy.value == pytest.approx(gain) and accuracy.stderr == pytest.approx(stderr, rel=0.1)
    unpaired = np.hypot(*(mean_and_stderr(of_run)[1] for of_run in scores.values()))
    assert accuracy.stderr < 0.6 * unpaired, "what is easy for both cancels"
    f1 = lines["pope", "f1"]
    assert f1.differences["b"].value == pytest.approx(f1.rows["b"].value - f1.rows["a"].value)
    assert f1.differences["b"].stderr < 0.6 * f1.rows["a"].stderr


def map_paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_no_difference_without_the_answers_to_the_same_questions(runs: dict[str, list[SampleRecord]]) -> None:
    file = RecordsFile(Path("b/samples/pope.jsonl"))
    about = file.about() or {}
    for records, changes in ((runs["b"][1:], {}), (runs["b"], {"limit": 3}), (runs["b"], {"data_revision": "other"})):
        file.write(records, about | changes)
        assert not any(line.differences for line in compare(map_paths("a", "b")).lines)
    file.write(runs["b"], about | {"scoring": "lmms-eval"})
    assert any(line.differences for line in compare(map_paths("a", "b")).lines), "they are scored as the row was"


def test_towers_and_vlms_stand_in_one_table(
    runs: dict[str, list[SampleRecord]], capsys: pytest.CaptureFixture[str]
) -> None:
    head, rule, *lines = printed(["a", "tower", "b", "--format", "markdown"], capsys).split("\n\n")[1].splitlines()
    assert head.split(" | ")[-4:] == ["a", "tower", "b", "difference to a |"] and "limit" not in head
    assert set(rule) <= set("|- ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[:3] for line in cells if line[0] == "knn"] == [["knn", "color", "accuracy"]]
    assert "0.500 ± 0.200" in next(line for line in lines if line.startswith("| knn"))
    assert len({len(line) for line in cells}) == 1


def test_every_number_is_in_json_and_csv(
    runs: dict[str, list[SampleRecord]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(printed(["a", "b", "--json"], capsys))
    (f1,) = [line for line in found if (line["metric"], line["run"]) == ("f1", "b")]
    assert f1["family"] == "pope" and f1["ci_low"] < f1["value"] < f1["ci_high"] and f1["difference"] > 0
    rows = list(csv.DictReader(io.StringIO(printed(["a", "b", "--format", "csv"], capsys))))
    assert [(row["run"], float(row["value"])) for row in rows] == [(line["run"], line["value"]) for line in found]


@pytest.mark.parametrize(
    ("names", "message"), [(["a"], "two runs"), (["a", "a"], "each once"), (["a", "empty"], "vlmkit eval empty")]
)
def test_what_cannot_be_compared_is_refused(
    runs: dict[str, list[SampleRecord]], names: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        compare(map_paths(*names))
