"""Every recipe that ships can be planned, and opens with the command, hardware, time and expectation."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vlmkit.config import PretrainRecipe, SweepRecipe, VLMRecipe
from vlmkit.pipelines import plan_vlm, pretrain, sweep
from vlmkit.recipe import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_can_be_planned(path: Path, tmp_path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# vlmkit ") and path.name in lines[0]
    assert all(word in lines[1] for word in ("Hardware:", "Time:", "Expect:"))
    recipe = load_recipe(yaml.safe_load(path.read_text())["command"], path, {})
    if isinstance(recipe, PretrainRecipe):
        plans = [pretrain.plan(recipe, tmp_path)]
    else:
        cells = [recipe] if isinstance(recipe, VLMRecipe) else list(sweep.cells(_sweep(recipe)).values())
        # The run that a recipe builds on is made by an earlier command; its tower has this registry shape.
        plans = [plan_vlm.plan(_on(cell, "ViT-mini-8-64"), tmp_path) for cell in cells]
    assert plans and all(plan.obstacle is None for plan in plans)


def _sweep(recipe: object) -> SweepRecipe:
    assert isinstance(recipe, SweepRecipe)
    return recipe


def _on(cell: VLMRecipe, tower: str) -> VLMRecipe:
    return cell.model_copy(update={"vision_tower": cell.vision_tower.model_copy(update={"name": tower})})
