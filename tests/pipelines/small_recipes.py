"""Recipes of a few seconds, for tests of whole runs, and what ends such runs early."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


class Crash(Exception):
    """What a run dies of."""


class CrashAt:
    """A progress display that ends the run after a step, without the checkpoint that a signal would leave."""

    def __init__(self, step: int) -> None:
        self._step = step

    def start(self, total_steps: int, step: int, description: str) -> None: ...

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self._step:
            raise Crash

    def finish(self) -> None: ...


def metrics_of(run: Path, name: str) -> list[float]:
    """The values of a metric in a run's metrics.jsonl, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


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
