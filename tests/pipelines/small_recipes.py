"""Recipes of a few seconds, for tests of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.recipe import load_recipe

TRAIN = {
    "steps": 6,
    "global_batch_size": 16,
    "eval_samples": 16,
    "log": {"every_steps": 1},
    "checkpoint": {"every_steps": 2},
}


def pretrain_recipe(**overrides: Any) -> PretrainRecipe:
    """A SuperClass recipe of a few seconds."""
    base = {"data.train": "miniworld:train?scenes=64", "data.val": "miniworld:val?scenes=16", "train": TRAIN}
    recipe = load_recipe("pretrain-superclass", None, {**base, **overrides})
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def vlm_recipe(tower: Path | str, **overrides: Any) -> VLMRecipe:
    """A VLM recipe of a few seconds, both stages."""
    base = {
        "data.train": "miniworld:train?scenes=64",
        "data.val": "miniworld:val?scenes=16",
        "vision_tower.name": str(tower),
        "llm.name": "nano",
        "compressor.num_visual_tokens": 4,
        "align": TRAIN,
        "finetune": TRAIN,
    }
    recipe = load_recipe("train-vlm", None, {**base, **overrides})
    assert isinstance(recipe, VLMRecipe)
    return recipe
