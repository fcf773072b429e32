"""Runs whose tower is one of transformers, whose frozen weights are bf16, or whose image size has a default."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_recipes import TRAIN, metrics_of, vlm_recipe
from transformers import CLIPVisionConfig, CLIPVisionModel

from vlmkit.config import VLMRecipe
from vlmkit.errors import UserError
from vlmkit.pipelines.plans import plan_vlm
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.pipelines.vlm_models import load_vlm


def caches(root: Path) -> list[Path]:
    return [path for path in (root / "cache" / "features").iterdir() if path.is_dir()]


def test_a_tower_of_transformers_trains_at_another_size(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**shape, image_size=32, patch_size=8)).save_pretrained(tmp_path / "clip")
    recipe = vlm_recipe(tmp_path / "clip", **{"vision_tower.image_size": 48})
    train_vlm(recipe, tmp_path / "run")
    vlm, _ = load_vlm(tmp_path / "run")
    assert vlm.vision_tower.image_size == 48 and vlm.vision_tower.grid == (6, 6)
    assert len(caches(tmp_path)) == 2  # the training and the held-out images, for both stages
    other = vlm_recipe(tmp_path / "clip", **{"vision_tower.image_size": 64, "stage": "align"})
    train_vlm(other, tmp_path / "other")
    assert len(caches(tmp_path)) == 4
    with pytest.raises(UserError, match=r"10 x 10 patch grid.*legal counts are 1, 4, 25, 100.*image size of 96 pixels"):
        plan_vlm.plan(
            vlm_recipe(tmp_path / "clip", **{"vision_tower.image_size": 80, "compressor.num_visual_tokens": 36}),
            tmp_path / "none",
        )


def test_under_bf16_the_stages_share_their_features_and_agree_with_float32(tower_run: Path, tmp_path: Path) -> None:
    half = {**TRAIN, "precision": "bf16"}
    train_vlm(vlm_recipe(tower_run, align=half, finetune=half), tmp_path / "half")
    assert len(caches(tmp_path)) == 2
    train_vlm(vlm_recipe(tower_run), tmp_path / "whole")
    for stage in ("align", "."):
        losses = [metrics_of(tmp_path / run / stage, "train/loss") for run in ("half", "whole")]
        assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    align, end = (load_file(tmp_path / "half" / stage / "model" / "model.safetensors") for stage in ("align", "."))
    matrix = "model.layers.0.mlp.up_proj.weight"
    assert align[f"language_model.{matrix}"].dtype == torch.bfloat16
    assert end[f"language_model.{matrix}"].dtype == torch.float32
    projector = next(name for name in align if name.startswith("projector."))
    assert align[projector].dtype == torch.float32


def recipe_7b(**overrides: object) -> VLMRecipe:
    return vlm_recipe("ViT-L-14", **{"llm.name": "7b", "compressor.num_visual_tokens": 36, **overrides})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, "36 of 576 patches"),
        ({"vision_tower.name": "ViT-S-16"}, "36 of 576 patches"),
        ({"vision_tower.image_size": 168}, "36 of 144 patches"),
        ({"llm.name": "nano", "compressor.num_visual_tokens": 16}, "16 of 256 patches"),
    ],
)
def test_the_papers_grid_is_the_default_beside_real_language_models(
    tmp_path: Path, overrides: dict[str, object], expected: str
) -> None:
    assert expected in dict(plan_vlm.plan(recipe_7b(**overrides), tmp_path).facts)["visual tokens"]
