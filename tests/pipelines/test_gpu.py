"""A GPU trains both tasks as the CPU does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_recipes import TRAIN, pretrain_recipe, vlm_recipe

from vlmkit.pipelines.pretrain import pretrain
from vlmkit.pipelines.train_vlm import train_vlm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]


def losses_of(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 5e-2)])
def test_losses_are_those_of_the_cpu(precision: str, tolerance: float, tower_run: Path, tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):  # the GPU first: its process group serves CPU tensors too
        train = {**TRAIN, "device": device, "precision": precision if device == "cuda" else "fp32"}
        pretrain(pretrain_recipe(train=train), tmp_path / f"tower-{device}")
        train_vlm(vlm_recipe(tower_run, stage="finetune", finetune=train), tmp_path / f"vlm-{device}")
    for task in ("tower", "vlm"):
        expected = losses_of(tmp_path / f"{task}-cpu")
        assert losses_of(tmp_path / f"{task}-cuda") == pytest.approx(expected, rel=tolerance)
