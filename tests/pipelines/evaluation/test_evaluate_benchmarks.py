"""Every published benchmark from its files to result rows and the measurements of ``frontier``, on a tiny VLM."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import datasets
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "evals" / "benchmarks"))
from made_up_tables import write_fixture
from small_recipes import vlm_recipe

from vlmkit import registry
from vlmkit.evals.benchmarks import TABLE_BENCHMARKS
from vlmkit.pipelines.evaluation.evaluate import EvalSettings, evaluate
from vlmkit.pipelines.vlm_models import build_vlm
from vlmkit.runs import RunDirectory
from vlmkit.scaling.measurements import load_measurements
from vlmkit.training import distributed


def untrained_run(path: Path) -> RunDirectory:
    """A finished run of the smallest VLM, with the weights that training starts from."""
    recipe = vlm_recipe("ViT-mini-8-64")
    run = RunDirectory(path)
    run.prepare(recipe, {}, {})
    vlm, tokenizer = build_vlm(recipe, "align", None, distributed.setup("cpu"))
    with run.writing_model() as directory:
        vlm.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return run


def test_every_benchmark_gives_rows_that_the_frontier_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    run = untrained_run(tmp_path / "run")
    for name in TABLE_BENCHMARKS:
        write_fixture(name, tmp_path / "data")

    evaluate(run.path, list(TABLE_BENCHMARKS), EvalSettings(device="cpu", data_dir=tmp_path / "data"))

    own = {row.benchmark: row for row in run.results() if row.family == row.benchmark}
    assert set(own) == {*TABLE_BENCHMARKS, "reasoning", "ocr"}
    for name, row in own.items():
        assert 0 <= row.value <= 1 and row.data_revision
        if name in TABLE_BENCHMARKS:
            lines = (run.samples_dir / f"{name}.jsonl").read_text().splitlines()
            records = [json.loads(line) for line in lines]
            assert row.metric == registry.benchmark(name).metric
            assert row.num_samples == sum(record["family"] == name for record in records) > 0
            assert not any(record["error"] for record in records)
    assert {row.family for row in run.results() if row.benchmark == "textvqa"} == {"textvqa", "textvqa_ocr_words"}

    found = {(row.family, row.visual_tokens): row.error for row in load_measurements([run.path]).rows}
    for family in ("reasoning", "ocr"):
        members = registry.benchmark_set(family).benchmarks
        mean = math.fsum(own[name].value for name in members) / len(members)
        assert found[family, 4] == pytest.approx(1 - mean)
