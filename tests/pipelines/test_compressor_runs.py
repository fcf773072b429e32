"""Whole runs with compressors that reach beyond the model: into the tower's image size, and into shared caches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_recipes import TRAIN, Crash, CrashAt, vlm_recipe

from vlmkit.data.feature_cache import cache_root
from vlmkit.errors import UserError
from vlmkit.models.vision_tower import build_tower
from vlmkit.pipelines.plans.plan_vlm import plan
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.pipelines.vlm_models import load_vlm

SHORT = {"align": {**TRAIN, "steps": 1}, "stage": "align"}


def test_downsample_runs_the_pretrained_tower_at_the_size_of_its_tokens(tower_run: Path, tmp_path: Path) -> None:
    recipe = vlm_recipe(tower_run, **{"compressor.name": "downsample", **SHORT})
    facts = dict(plan(recipe, tmp_path / "run").facts)
    assert "16 px" in facts["tower"] and facts["visual tokens"].startswith("4 of 4 patches")
    train_vlm(recipe, tmp_path / "run")
    vlm, _ = load_vlm(tmp_path / "run")
    assert (vlm.vision_tower.image_size, vlm.vision_tower.grid) == (16, (2, 2))
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    small = build_tower(tower_run, image_size=16).eval()(pixels, frozenset({"patches"})).patches
    with torch.no_grad():
        torch.testing.assert_close(vlm.visual_tokens(pixels), vlm.projector(small).flatten(0, 1))
    for count in (5, 81):
        with pytest.raises(UserError, match="1, 4, 9, 16, 25, 36, 49, 64: choose one"):
            plan(
                vlm_recipe(tower_run, **{"compressor.name": "downsample", "compressor.num_visual_tokens": count}),
                tmp_path,
            )


def test_runs_whose_features_are_the_same_share_their_caches(tower_run: Path, tmp_path: Path) -> None:
    def run(name: str, tokens: int) -> int:
        compressor = {"compressor.name": name, "compressor.num_visual_tokens": tokens}
        data = {"data.train": "miniworld:train?scenes=16", "data.val": None}
        train_vlm(vlm_recipe(tower_run, **compressor, **data, **SHORT), tmp_path / f"{name}{tokens}")
        return sum(path.is_dir() for path in cache_root().iterdir())

    assert run("quecc", 1) == 1
    assert run("tokenpacker", 4) == 1
    assert run("avgpool", 4) == 2


@pytest.mark.slow
def test_a_resumed_align_run_reads_its_questions_to_the_bit_as_before(tower_run: Path, tmp_path: Path) -> None:
    recipe = vlm_recipe(tower_run, stage="align", **{"compressor.name": "quecc", "data.val": None})
    train_vlm(recipe, tmp_path / "whole")
    with pytest.raises(Crash):
        train_vlm(recipe, tmp_path / "resumed", CrashAt(5))
    train_vlm(recipe, tmp_path / "resumed")
    weights = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "resumed")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_stage_goes_on_with_the_query_it_started_with(tower_run: Path, tmp_path: Path) -> None:
    train_vlm(
        vlm_recipe(tower_run, **{"compressor.name": "quecc", "compressor.query": "none", **SHORT}), tmp_path / "a"
    )
    recipe = vlm_recipe(tower_run, init=str(tmp_path / "a"), stage="finetune", **{"compressor.name": "quecc"})
    with pytest.raises(UserError, match="query none, but quecc with 4 and llm"):
        train_vlm(recipe, tmp_path / "b")
