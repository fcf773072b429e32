"""Losses over all pairs of a step on two gloo ranks, replicated and sharded, against one process with it at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_captions
from safetensors.torch import load_file
from toy_captions import run_job

from vlmkit.models.open_clip_layout import export_open_clip
from vlmkit.models.vision_tower import build_tower

pytestmark = pytest.mark.dist
ENGINES = ("ddp", "fsdp")
OBJECTIVES: dict[str, dict[str, str]] = {
    **{name: {"objective": name} for name in ("clip", "siglip", "superclip", "lit")},
    "two_way": {"objective": "superclass", "objective.loss": "two_way"},
}
MICRO_BATCHES = (2, 4)
"""Samples of a micro-batch: half of a rank's share, and all of it."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("worlds")
    tower = root / "tower"
    tower.mkdir()
    export_open_clip(build_tower("ViT-mini-8-64"), tower)
    objectives = OBJECTIVES | {"lit": {"objective": "lit", "tower.name": str(tower)}}
    jobs = [
        {**job, "out": str(root / f"{name}-{engine}-{micro}"), "parallel": engine, "micro_batch_size": micro}
        for name, job in objectives.items()
        for engine in ENGINES
        for micro in MICRO_BATCHES
    ]
    jobs.append({"objective": "clip", "out": str(root / "clip-bf16"), "parallel": "fsdp", "precision": "bf16"})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, toy_captions.__file__, json.dumps(jobs)], check=True, timeout=400)
    for name, job in objectives.items():
        run_job(root / name, micro_batch_size=8, **job)  # type: ignore[arg-type]
    return root


def logged(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[float]:
    return logged(run, "train/loss")


@pytest.mark.parametrize("micro", MICRO_BATCHES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_ranks_train_like_one_process(runs: Path, objective: str, engine: str, micro: int) -> None:
    mine, reference = runs / f"{objective}-{engine}-{micro}", runs / objective
    assert losses_of(mine) == pytest.approx(losses_of(reference), rel=1e-5)
    assert len(losses_of(reference)) == 3
    weights, expected = (load_file(run / "model" / "open_clip_model.safetensors") for run in (mine, reference))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_bf16_shards_train_alike_with_a_float32_logit_scale(runs: Path) -> None:
    losses, expected = losses_of(runs / "clip-bf16"), losses_of(runs / "clip")
    assert losses == pytest.approx(expected, rel=0.02) and losses != expected
    scales = logged(runs / "clip-bf16", "train/logit_scale")
    assert scales == pytest.approx(logged(runs / "clip", "train/logit_scale"), rel=1e-3)
    assert scales[0] == pytest.approx(1 / 0.07, rel=1e-6)


def test_a_lit_run_leaves_its_tower_bit_for_bit(runs: Path) -> None:
    tower = build_tower(runs / "tower").fingerprint()
    for run in ("lit", "lit-ddp-2", "lit-fsdp-2"):
        assert build_tower(runs / run / "model").fingerprint() == tower
