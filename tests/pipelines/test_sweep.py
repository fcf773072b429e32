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
