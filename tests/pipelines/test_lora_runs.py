"""Runs that train adapters or the tower: exact resume, small checkpoints, going on from them, and many ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_recipes import TRAIN, Crash, CrashAt, metrics_of, vlm_recipe

from vlmkit.config import VLMRecipe
from vlmkit.models.adapters import load_adapted
from vlmkit.models.llm import load_llm
from vlmkit.models.towers import find_tower
from vlmkit.pipelines.plans.plan_vlm import plan
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.pipelines.vlm_models import load_vlm
from vlmkit.recipe import vary

pytest.importorskip("peft")
KINDS = {"lora": {"lora": {"r": 4, "alpha": 8, "dropout": 0.05}}, "tower": {"train_tower": True}}
OPTIM = {"lr": 2e-3, "lr_multipliers": {"projector": 0.1}}
OPTIMS = {"lora": OPTIM, "tower": {**OPTIM, "lr_multipliers": {"tower": 0.1}}}


def recipe(kind: str, tower: Path, **overrides: Any) -> VLMRecipe:
    train = {**TRAIN, "optim": OPTIMS[kind], **overrides.pop("finetune", {})}
    return vlm_recipe(tower, stage="finetune", finetune=train, **(KINDS[kind] | overrides))


def weights_of(run: Path) -> dict[str, Any]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def lora_run(tower_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        train_vlm(recipe("lora", tower_run), out)
    return out


@pytest.mark.parametrize("kind", ["lora", "tower"])
def test_a_crashed_run_resumes_exactly(tower_run: Path, tmp_path: Path, kind: str, request: Any) -> None:
    straight, crashed = tmp_path / "straight", tmp_path / "crashed"
    if kind == "lora":
        straight = request.getfixturevalue("lora_run")
    else:
        train_vlm(recipe(kind, tower_run), straight)
    with pytest.raises(Crash):
        train_vlm(recipe(kind, tower_run), crashed, CrashAt(5))
    train_vlm(recipe(kind, tower_run), crashed)
    assert metrics_of(crashed, "train/loss") == metrics_of(straight, "train/loss")
    mine, theirs = weights_of(crashed), weights_of(straight)
    assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


def test_a_checkpoint_holds_the_adapters_and_no_frozen_weight(lora_run: Path) -> None:
    names = set()
    for file in (lora_run / "checkpoints" / "step-00000006" / "state").iterdir():
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    weights = {name for name in names if name.startswith("model.")}
    assert weights and all(".lora_" in name or ".projector." in name for name in weights)


def test_the_adapter_on_its_base_is_the_merged_model(lora_run: Path, tower_run: Path) -> None:
    base, _ = load_llm(recipe("lora", tower_run).llm, seed=0)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapted = load_adapted(lora_run / "model" / "adapter", base, find_tower(str(tower_run)))
    merged, _ = load_vlm(lora_run)
    ids = torch.arange(10, 30)[None]
    difference = adapted(input_ids=ids).logits - merged.eval()(input_ids=ids).logits
    assert difference.abs().max() < 1e-5
    moved = merged.language_model.state_dict()
    assert not moved["model.layers.0.mlp.up_proj.weight"].equal(before["model.layers.0.mlp.up_proj.weight"])
    assert moved["model.embed_tokens.weight"].equal(before["model.embed_tokens.weight"])


def test_a_run_goes_on_from_the_merged_model(lora_run: Path, tower_run: Path, tmp_path: Path) -> None:
    more = recipe("lora", tower_run, init=str(lora_run))
    facts = [dict(plan(given, tmp_path).facts)["llm"] for given in (more, vary(more, {"lora": None}))]
    assert "its adapters merged, under fresh ones:" in facts[0] and "its adapters merged:" in facts[1]
    train_vlm(more, tmp_path / "more")
    first, last = metrics_of(lora_run, "train/loss"), metrics_of(tmp_path / "more", "train/loss")
    assert last[0] < first[0]
    assert (tmp_path / "more" / "model" / "adapter" / "adapter_config.json").is_file()


def test_a_trained_tower_moves_and_its_features_are_never_cached(
    tower_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_vlm(recipe("tower", tower_run), tmp_path / "run")
    assert "no feature cache is used" in caplog.text and not (tmp_path / "cache" / "features").exists()
    moved, start = load_vlm(tmp_path / "run")[0].vision_tower, find_tower(str(tower_run))
    changed = {
        name.split(".")[3] if "resblocks" in name else name
        for (name, new), old in zip(moved.state_dict().items(), start.state_dict().values(), strict=True)
        if not new.equal(old)
    }
    last = str(start.num_layers - 1)
    assert "0" in changed and last not in changed and "visual.ln_post.weight" not in changed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
def test_four_bits_train_beside_bf16_and_resume_exactly(tower_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plain = recipe("lora", tower_run, finetune={"device": "cuda", "precision": "bf16"})
    quantized = vary(plain, {"lora.quantize": "nf4"})
    for name, given in (("plain", plain), ("straight", quantized)):
        train_vlm(given, tmp_path / name)
    with pytest.raises(Crash):
        train_vlm(quantized, tmp_path / "crashed", CrashAt(5))
    train_vlm(quantized, tmp_path / "crashed")
    plain_losses, losses, resumed = (
        metrics_of(tmp_path / name, "train/loss") for name in ("plain", "straight", "crashed")
    )
    assert losses == resumed and losses == pytest.approx(plain_losses, rel=0.1)
    assert weights_of(tmp_path / "straight").keys() == weights_of(tmp_path / "plain").keys()


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["lora", "tower"])
def test_two_ranks_train_like_one_process(kind: str, tower_run: Path, tmp_path: Path) -> None:
    def with_engine(**train: Any) -> VLMRecipe:
        given = recipe(kind, tower_run, feature_cache=False, finetune={"steps": 10, "micro_batch_size": 4, **train})
        return vary(given, {"lora.dropout": 0.0}) if kind == "lora" else given  # drawn by each rank for itself

    engines = {"ddp": {}, "fsdp": {"parallel": "fsdp"}, "half": {"parallel": "fsdp", "precision": "bf16"}}
    jobs = [(with_engine(**train).model_dump(mode="json"), str(tmp_path / name)) for name, train in engines.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(__file__).with_name("run_jobs.py"))
    subprocess.run([*torchrun, script, json.dumps(jobs)], check=True, timeout=400)
    train_vlm(with_engine(), tmp_path / "one")
    for name, tolerance in (("ddp", 1e-5), ("fsdp", 1e-5), ("half", 2e-2)):
        for metric in ("train/loss", "val/loss"):
            expected = metrics_of(tmp_path / "one", metric)
            assert metrics_of(tmp_path / name, metric) == pytest.approx(expected, rel=tolerance), name
    mine, reference = weights_of(tmp_path / "fsdp"), weights_of(tmp_path / "one")
    assert mine.keys() == reference.keys()
    assert all(mine[name].allclose(reference[name], rtol=1e-3, atol=1e-4) for name in reference)
