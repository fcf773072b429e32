"""LiT computes the features of its frozen tower once where it can, with the same losses, and says where it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_recipes import TRAIN, Crash, CrashAt, metrics_of, pretrain_recipe

from vlmkit.config import PretrainRecipe
from vlmkit.data.feature_cache import cache_root
from vlmkit.models.vision_tower import VisionTower
from vlmkit.pipelines.plans import plan_pretrain
from vlmkit.pipelines.pretrain import pretrain


def lit(tower: Path, **overrides: Any) -> PretrainRecipe:
    plain = {"augment.crop_scale": [1, 1], "data.val": None, "tower.name": str(tower)}
    objective = {"name": "lit", "text": {"width": 32, "layers": 1, "heads": 1}}
    return pretrain_recipe(**{"objective": objective, **plain, **overrides})


@pytest.fixture
def towered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that a tower has read."""
    sizes: list[int] = []
    pooled = VisionTower.pooled

    def counted(self: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return pooled(self, pixels)

    monkeypatch.setattr(VisionTower, "pooled", counted)
    return sizes


def test_cached_features_give_the_losses_of_computed_ones(tower_run: Path, tmp_path: Path, towered: list[int]) -> None:
    pretrain(lit(tower_run, **{"feature_cache": False, "data.val": "miniworld:val?scenes=16"}), tmp_path / "computed")
    assert sum(towered) == 6 * 16 + 16
    towered.clear()
    pretrain(lit(tower_run, **{"data.val": "miniworld:val?scenes=16"}), tmp_path / "cached")
    assert sum(towered) == 64 + 16, "the source once, and the held-out images"
    for name in ("train/loss", "val/loss"):
        expected = metrics_of(tmp_path / "computed", name)
        assert metrics_of(tmp_path / "cached", name) == pytest.approx(expected, rel=1e-6) and expected
    towered.clear()
    pretrain(lit(tower_run, **{"train.num_workers": 1}), tmp_path / "again")
    assert towered == [], "what one run has computed others read"
    assert metrics_of(tmp_path / "again", "train/loss") == metrics_of(tmp_path / "cached", "train/loss")


def test_a_resumed_run_with_cached_features_ends_as_one_that_never_stopped(tower_run: Path, tmp_path: Path) -> None:
    recipe = lit(tower_run)
    pretrain(recipe, tmp_path / "straight")
    with pytest.raises(Crash):
        pretrain(recipe, tmp_path / "stopped", CrashAt(3))
    shutil.rmtree(cache_root())
    pretrain(recipe, tmp_path / "stopped")
    mine, theirs = (
        load_file(tmp_path / run / "model" / "open_clip_model.safetensors") for run in ("stopped", "straight")
    )
    assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "computed once and kept on disk, 0.03 MB"),
        ({"augment.crop_scale": [0.9, 1]}, "in every step: images are augmented"),
        ({"augment.flip": 0.5}, "in every step: images are augmented"),
        ({"cache_limit_gb": 1e-6}, "in every step: all of them would take 0.03 MB, above cache_limit_gb=1e-06"),
        ({"feature_cache": False}, "in every step: feature_cache is off"),
        ({"train": {**TRAIN, "steps": 3}}, "in every step: the run sees only a part of the images"),
    ],
)
def test_the_plan_says_what_the_run_then_does(
    changes: dict[str, Any], said: str, tower_run: Path, tmp_path: Path, towered: list[int]
) -> None:
    recipe = lit(tower_run, **changes)
    assert said in dict(plan_pretrain.plan(recipe, tmp_path / "run").facts)["features"]
    if recipe.train.steps == 3 or not changes:
        pretrain(recipe, tmp_path / "run")
        assert cache_root().exists() == ("once" in said) and sum(towered) == (3 * 16 if changes else 64)


def test_what_is_trained_has_no_cached_features(tmp_path: Path) -> None:
    recipe = pretrain_recipe(**{"augment.crop_scale": [1, 1]})
    assert "features" not in dict(plan_pretrain.plan(recipe, tmp_path).facts)


@pytest.mark.dist
def test_several_ranks_share_the_cached_features(tower_run: Path, tmp_path: Path) -> None:
    engines = ("ddp", "fsdp")
    jobs = [(lit(tower_run, **{"train.parallel": engine}), str(tmp_path / engine)) for engine in engines]
    described = json.dumps([(recipe.model_dump(mode="json"), out) for recipe, out in jobs])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(__file__).with_name("run_jobs.py"))
    subprocess.run([*torchrun, script, described], check=True, timeout=200)
    assert len([path for path in cache_root().iterdir() if path.is_dir()]) == len(engines)
    pretrain(lit(tower_run), tmp_path / "alone")
    for engine in engines:
        expected = metrics_of(tmp_path / "alone", "train/loss")
        assert metrics_of(tmp_path / engine, "train/loss") == pytest.approx(expected, rel=1e-5)
