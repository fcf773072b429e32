"""A GPU trains both tasks as the CPU does, in every way that there is of training on one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_recipes import TRAIN, Crash, CrashAt, metrics_of, pretrain_recipe, vlm_recipe

from vlmkit.config import PretrainRecipe
from vlmkit.pipelines.pretrain import pretrain
from vlmkit.pipelines.train_vlm import train_vlm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]


def on_gpu(**train: Any) -> PretrainRecipe:
    return pretrain_recipe(train={**TRAIN, "device": "cuda", **train})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in float32, loaded by the process that trains."""
    run = tmp_path_factory.mktemp("plain") / "run"
    pretrain(on_gpu(), run)
    return run


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-2), ("bf16", 5e-2)])
def test_losses_are_those_of_the_cpu(precision: str, tolerance: float, tower_run: Path, tmp_path: Path) -> None:
    for device in ("cuda", "cpu"):  # the GPU first: its process group serves CPU tensors too
        train = {**TRAIN, "device": device, "precision": precision if device == "cuda" else "fp32"}
        pretrain(pretrain_recipe(train=train), tmp_path / f"tower-{device}")
        train_vlm(vlm_recipe(tower_run, stage="finetune", finetune=train), tmp_path / f"vlm-{device}")
    for task in ("tower", "vlm"):
        expected = metrics_of(tmp_path / f"{task}-cpu", "train/loss")
        assert metrics_of(tmp_path / f"{task}-cuda", "train/loss") == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"num_workers": 2}, 1e-3),
        ({"compile": True}, 5e-3),
        ({"parallel": "fsdp"}, 1e-3),
        ({"parallel": "fsdp", "precision": "bf16"}, 5e-2),
        ({"compile": True, "precision": "bf16"}, 5e-2),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_losses_are_those_of_a_plain_run(
    options: dict[str, Any], tolerance: float, plain: Path, tmp_path: Path
) -> None:
    pretrain(on_gpu(**options), tmp_path / "run")
    losses, expected = (metrics_of(run, "train/loss") for run in (tmp_path / "run", plain))
    assert losses == pytest.approx(expected, rel=tolerance)


def test_a_run_goes_on_where_it_ended(
    plain: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Close to the run that never stopped: attention on a GPU adds up gradients in no fixed order."""
    run = tmp_path / "run"
    with pytest.raises(Crash):
        pretrain(on_gpu(), run, CrashAt(3))
    pretrain(on_gpu(), run)
    losses, expected = (metrics_of(path, "train/loss") for path in (run, plain))
    record_property("equal to the last bit", losses == expected)
    assert losses == pytest.approx(expected, rel=1e-4)
    counts, expected_counts = (load_file(path / "model" / "token_counts.safetensors") for path in (run, plain))
    assert all(counts[name].equal(expected_counts[name]) for name in expected_counts)
