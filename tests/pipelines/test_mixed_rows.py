"""VLM runs over text alone, one image and several, on one and two ranks: the same losses, and exact resumption.

Weights of the language model or adapters train, and one model for one token count or for several."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from small_recipes import TRAIN, Crash, CrashAt, metrics_of, vlm_recipe

from vlmkit.config import VLMRecipe
from vlmkit.pipelines.train_vlm import train_vlm

pytest.importorskip("peft")
STEPS = 8
ENGINES = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows sorted by kind, most of them text alone: some ranks get batches without an image."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    records: list[dict[str, Any]] = []
    for number in range(24):
        names = []
        for k in range((0, 0, 0, 1, 0, 2)[number % 6]):
            names.append(f"{number}-{k}.png")
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / names[-1])
        words = "red " * (1 + number * 7 % 11)
        turns = [("what color is it", words), ("is it red", "yes")][: 1 + number % 2]
        spoken = [{"from": ("human", "gpt")[i], "value": turn[i]} for turn in turns for i in (0, 1)]
        records.append({"conversations": spoken, **({"image": names} if names else {})})
    (folder / "rows.json").write_text(json.dumps(records))
    return folder / "rows.json"


# Without dropout, which each rank draws for itself.
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"r": 4, "alpha": 8, "dropout": 0.0}},
    "elastic": {"compressor.num_visual_tokens": [1, 4, 16]},
}
RUNS = {
    **{engine: (engine, "full", {}) for engine in ENGINES},
    **{f"{engine}-budget": (engine, "full", {"micro_batch_tokens": 64}) for engine in ENGINES},
    **{f"{engine}-lora": (engine, "lora", {"micro_batch_tokens": 64}) for engine in ENGINES},
    "ddp-elastic": ("ddp", "elastic", {"micro_batch_tokens": 64}),
}
"""Engine, kind and train section of the runs on two ranks; a token budget gives ranks unequal micro-batches."""
RESUMED = [f"{engine}-{name}" for name in ("budget", "lora") for engine in ENGINES]


def recipe(tower: Path, rows: Path, engine: str = "ddp", kind: str = "full", **train: Any) -> VLMRecipe:
    section = {**TRAIN, "steps": STEPS, "global_batch_size": 4, "parallel": engine, "device": "cpu", **train}
    section["checkpoint"] = {"every_steps": 2, "keep": 4}
    return vlm_recipe(
        tower,
        stage="finetune",
        finetune=section,
        max_length=64,
        **KINDS[kind],
        **{"data.train": {f"llava:{rows}": 3, "miniworld:train?scenes=8": 1}, "data.val": f"llava:{rows}"},
    )


def in_two_processes(jobs: list[tuple[VLMRecipe, Path]]) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = json.dumps([(job.model_dump(mode="json"), str(out)) for job, out in jobs])
    script = str(Path(__file__).with_name("run_jobs.py"))
    subprocess.run([*torchrun, script, given], check=True, timeout=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tower_run: Path, rows: Path) -> Path:
    """Two processes for each of RUNS, and one for each kind."""
    root = tmp_path_factory.mktemp("mixed")
    jobs = [
        (recipe(tower_run, rows, engine, kind, **train), root / name) for name, (engine, kind, train) in RUNS.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        in_two_processes(jobs)
        for kind in KINDS:
            train_vlm(recipe(tower_run, rows, kind=kind), root / kind)
    return root


@pytest.mark.dist
@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_train_like_one_process_whatever_rows_they_get(runs: Path, run: str) -> None:
    for name in ("train/loss", "val/loss"):
        expected = metrics_of(runs / RUNS[run][1], name)
        assert metrics_of(runs / run, name) == pytest.approx(expected, rel=1e-5) and expected
    assert len(metrics_of(runs / run, "train/loss")) == STEPS


@pytest.mark.dist
def test_two_ranks_resume_exactly(runs: Path, tower_run: Path, rows: Path, tmp_path: Path) -> None:
    """From the checkpoint of step 4, as if the run had crashed after it."""
    for name in RESUMED:
        copy = tmp_path / name
        shutil.copytree(runs / name, copy)
        lines = (copy / "metrics.jsonl").read_text().splitlines()
        (copy / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= 4))
        shutil.rmtree(copy / "model")
        for step in (6, 8):
            shutil.rmtree(copy / "checkpoints" / f"step-{step:08d}")
    given = {name: RUNS[name] for name in RESUMED}
    in_two_processes(
        [(recipe(tower_run, rows, engine, kind, **train), tmp_path / n) for n, (engine, kind, train) in given.items()]
    )
    for name in RESUMED:
        straight, resumed = runs / name, tmp_path / name
        assert metrics_of(resumed, "train/loss") == metrics_of(straight, "train/loss")
        mine, theirs = (load_file(path / "model" / "model.safetensors") for path in (resumed, straight))
        assert mine.keys() == theirs.keys() and all(mine[key].equal(theirs[key]) for key in mine)


@pytest.mark.slow
def test_one_process_resumes_exactly_under_another_token_budget(tower_run: Path, rows: Path, tmp_path: Path) -> None:
    """The position is one integer: how a step is cut up is no part of it."""
    with pytest.raises(Crash):
        train_vlm(recipe(tower_run, rows, micro_batch_tokens=64), tmp_path / "a", CrashAt(5))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    train_vlm(recipe(tower_run, rows, micro_batch_tokens=64), tmp_path / "a")
    train_vlm(recipe(tower_run, rows, micro_batch_tokens=128), tmp_path / "b")
    losses = [metrics_of(tmp_path / name, "train/loss") for name in "ab"]
    assert losses[0][:4] == losses[1][:4] and losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert len(losses[1]) == STEPS
