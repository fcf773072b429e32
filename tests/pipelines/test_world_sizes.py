"""Both tasks on two gloo ranks, replicated and sharded, against one process: the same global batch, the same losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small_recipes import TRAIN, pretrain_recipe, vlm_recipe

from vlmkit.config import Section
from vlmkit.pipelines.pretrain import pretrain
from vlmkit.pipelines.train_vlm import train_vlm

pytestmark = pytest.mark.dist
STEPS = 20
ENGINES = ("ddp", "fsdp")
TASKS = ("superclass", "vlm")


def recipe(task: str, tower: Path, **train: Any) -> Section:
    # A micro-batch smaller than a rank's share: accumulation is part of what must not matter.
    section = {**TRAIN, "steps": STEPS, "micro_batch_size": 4, **train}
    if task == "superclass":
        return pretrain_recipe(train=section)
    return vlm_recipe(tower, stage="finetune", finetune=section, feature_cache=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tower_run: Path) -> Path:
    root = tmp_path_factory.mktemp("worlds")
    jobs = [
        (recipe(task, tower_run, parallel=engine).model_dump(mode="json"), str(root / f"{task}-{engine}"))
        for task in TASKS
        for engine in ENGINES
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(__file__).with_name("run_jobs.py"))
    subprocess.run([*torchrun, script, json.dumps(jobs)], check=True, timeout=400)
    pretrain(recipe("superclass", tower_run), root / "superclass")  # type: ignore[arg-type]
    train_vlm(recipe("vlm", tower_run), root / "vlm")  # type: ignore[arg-type]
    return root


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", TASKS)
def test_two_ranks_train_like_one_process(runs: Path, task: str, engine: str) -> None:
    mine, reference = lines_of(runs / f"{task}-{engine}"), lines_of(runs / task)
    for name in ("train/loss", "val/loss"):
        expected = [line[name] for line in reference if name in line]
        assert [line[name] for line in mine if name in line] == pytest.approx(expected, rel=1e-5)
    assert len([line for line in mine if "train/loss" in line]) == STEPS


@pytest.mark.parametrize("engine", ENGINES)
def test_token_counts_do_not_depend_on_the_number_of_ranks(runs: Path, engine: str) -> None:
    mine, reference = (
        load_file(run / "model" / "token_counts.safetensors")
        for run in (runs / f"superclass-{engine}", runs / "superclass")
    )
    assert int(reference["num_documents"]) == STEPS * TRAIN["global_batch_size"]
    assert all(mine[name].equal(reference[name]) for name in reference)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sharded_run_exports_whole_weights(runs: Path, engine: str) -> None:
    mine, reference = (load_file(run / "model" / "model.safetensors") for run in (runs / f"vlm-{engine}", runs / "vlm"))
    assert mine.keys() == reference.keys()
    for name, weight in reference.items():
        assert mine[name].shape == weight.shape
        assert mine[name].allclose(weight, rtol=1e-3, atol=1e-4), name
