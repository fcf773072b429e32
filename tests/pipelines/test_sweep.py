"""Sweeps: the grid of recipes, and a small one run for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_recipes import TRAIN

from vlmkit.config import SweepRecipe
from vlmkit.errors import UserError
from vlmkit.pipelines import sweep
from vlmkit.recipe import load_recipe
from vlmkit.runs import ResultRow


def sweep_recipe(**overrides: Any) -> SweepRecipe:
    base = {
        "llms": ["nano", "micro"],
        "tokens": [1, 4],
        "base.stage": "finetune",
        "base.data.train": "miniworld:train?scenes=64",
        "base.data.val": None,
        "base.finetune": TRAIN,
    }
    recipe = load_recipe("sweep", None, {**base, **overrides})
    assert isinstance(recipe, SweepRecipe)
    return recipe


def test_cells_are_the_product_of_the_lists_with_their_own_rates() -> None:
    cells = sweep.cells(sweep_recipe(seeds=[0, 1], lr={"nano": 0.5}))
    assert len(cells) == 8
    cell = cells["nano-avgpool4-seed1"]
    assert (cell.llm.name, cell.compressor.num_visual_tokens, cell.seed) == ("nano", 4, 1)
    assert cell.finetune.optim.lr == 0.5 and cells["micro-avgpool4-seed1"].finetune.optim.lr != 0.5
    assert cell.finetune.steps == TRAIN["steps"] and cell.data.train == "miniworld:train?scenes=64"
    assert next(iter(cells)).startswith("micro-avgpool4"), "the costliest cell goes first"


def test_a_list_among_the_token_counts_is_one_elastic_run_with_a_line_for_each() -> None:
    recipe = sweep_recipe(llms=["nano"], tokens=[4, [16, 1]], **{"base.compressor": {"elastic": "all"}})
    cells = sweep.cells(recipe)
    assert cells.keys() == {"nano-avgpool4-seed0", "nano-avgpool1-16-seed0"}
    elastic = cells["nano-avgpool1-16-seed0"].compressor
    assert (elastic.counts, elastic.elastic) == ((1, 16), "all")
    facts = {"benchmark": "b", "metric": "m", "num_samples": 1, "stderr": 0.0, "data_revision": "", "scoring": ""}
    rows = [ResultRow(family=f, value=n / 100, visual_tokens=n, **facts) for n in (1, 16) for f in ("ocr", "count")]
    columns, lines = sweep.table({"elastic": rows, "missing": []})
    assert columns == ["run", "tokens", "ocr", "count"]
    assert lines == [("elastic", 1, "0.010", "0.010"), ("elastic", 16, "0.160", "0.160"), ("missing", None, "", "")]


@pytest.mark.slow
def test_a_sweep_trains_evaluates_skips_what_is_done_and_names_what_fails(tower_run: Path, tmp_path: Path) -> None:
    recipe = sweep_recipe(**{"base.vision_tower.name": str(tower_run)})
    heard: list[str] = []
    results = sweep.sweep(recipe, tmp_path, jobs=2, on_cell=lambda name, rows: heard.append(name))
    assert sorted(heard) == sorted(results) == sorted(sweep.cells(recipe))
    assert all({row.family for row in rows} >= {"reasoning", "ocr"} for rows in results.values())
    columns, lines = sweep.table(results)
    assert columns[:3] == ["run", "tokens", "reasoning"] and len(lines) == 4

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert sweep.sweep(recipe, tmp_path, jobs=2) == results
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before

    with pytest.raises(UserError, match=r"nano-avgpool5-seed0 failed: .*1, 4, 16, 64"):
        broken = sweep_recipe(**{"base.vision_tower.name": str(tower_run), "tokens": [5], "llms": ["nano"]})
        sweep.sweep(broken, tmp_path, jobs=1)
