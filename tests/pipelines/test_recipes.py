"""Every recipe that ships can be planned, and opens with the command, hardware, time and expectation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vlmkit.config import PretrainRecipe, Section, StudyRecipe, SweepRecipe, VLMRecipe
from vlmkit.errors import UserError
from vlmkit.pipelines.grids import study, sweep
from vlmkit.pipelines.plans import plan_pretrain, plan_vlm
from vlmkit.pipelines.plans.plan import Plan
from vlmkit.recipe import load_recipe, vary

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))
SUPERCLIP = ROOT / "superclass" / "superclip_b16_512m.yaml"
PUBLISHED = sorted({*(ROOT / "superclass").glob("*.yaml")} - {SUPERCLIP})
PLANNED = ("b16_512m", "l14_12.8b", "rn50_1.28b")
"""Published recipes whose CLIP baselines and LiT stages are planned too; the settings of all are compared."""
WORLD = "miniworld:train?scenes=100"
VLMS = ROOT / "vlm"
PUBLISHED_VLMS = [VLMS / f"{name}.yaml" for name in ("quecc_vicuna_7b", "quecc_vicuna_7b_lora", "qwen15_ladder")]
_LOCAL = {"vision_tower.name": "ViT-L-14-336", "data.train": WORLD, "align_data.train": WORLD}
"""The published tower's shape by registry name, and data of this package, in place of what is downloaded."""


def slow_if_repeated(path: Path) -> object:
    """Of the published VLMs one is planned with the fast tests; the settings of all are compared there. The forms of
    the frontier's study have the same models."""
    marks = [pytest.mark.slow] if path in (*PUBLISHED_VLMS[1:], ROOT / "study_frontier_long.yaml") else []
    return pytest.param(path, id=path.stem, marks=marks)


def load(path: Path, **overrides: object) -> Section:
    return load_recipe(yaml.safe_load(path.read_text())["command"], path, overrides)


@pytest.mark.parametrize("path", [slow_if_repeated(path) for path in RECIPES])
def test_a_shipped_recipe_can_be_planned(path: Path, tmp_path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# vlmkit ") and str(path.relative_to(ROOT.parent)) in lines[0]
    assert all(word in lines[1] for word in ("Hardware:", "Time:", "Expect:"))
    plans = list(_plans(load(path), tmp_path))
    # Recipes for many GPUs do not fit a small machine; that they say so is right.
    for_many_gpus = path.parent.name == "superclass" or path in PUBLISHED_VLMS
    assert plans and (for_many_gpus or all(plan.obstacle is None for plan in plans))


def _plans(recipe: Section, out: Path) -> Iterator[Plan]:
    """Plans on data and a tower of this package: those that a recipe builds on are made or fetched by its user."""
    if isinstance(recipe, PretrainRecipe):
        local = vary(recipe, {"data.train": WORLD, "data.val": WORLD})
        assert isinstance(local, PretrainRecipe)
        yield plan_pretrain.plan(local, out)
    elif isinstance(recipe, StudyRecipe):
        # Losses, IDF and batches change nothing that takes long to plan: one arm of each objective is enough.
        arms = {cell.recipe.objective.name: cell.recipe for cell in study.cells(recipe).values()}
        for arm in arms.values():
            yield from _plans(arm, out)
    elif isinstance(recipe, SweepRecipe):
        # Each language model once, and the least and the most visual tokens: the counts between are planned below.
        cells = list(sweep.cells(recipe).values())
        chosen = {cell.llm.name: cell for cell in cells} | {max(c.compressor.counts): c for c in cells}
        for vlm in {vlm.model_dump_json(): vlm for vlm in chosen.values()}.values():
            yield from _plans(vlm, out)
    else:
        if isinstance(recipe, VLMRecipe) and recipe.lora is not None:
            pytest.importorskip("peft")
        local = vary(recipe, _LOCAL if recipe.align_data else {"vision_tower.name": "ViT-mini-8-64"})
        assert isinstance(local, VLMRecipe)
        yield plan_vlm.plan(local, out)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_runs_have_the_published_settings(path: Path, tmp_path: Path) -> None:
    """SuperClass's training table: samples, batch, rate, betas and warm-up by the length of the run."""
    recipe, clip = load(path, **{"data.train": WORLD}), load(path, **{"objective.name": "clip", "data.train": WORLD})
    assert isinstance(recipe, PretrainRecipe) and isinstance(clip, PretrainRecipe)
    assert clip.model_copy(update={"objective": recipe.objective}) == recipe
    train, optim = recipe.train, recipe.train.optim
    samples = {"128m": 128e6, "512m": 512e6, "1.28b": 1.28e9, "12.8b": 12.8e9}[path.stem.rpartition("_")[2]]
    full = samples == 12.8e9
    assert train.samples == samples and train.global_batch_size == (90_112 if full else 16_384)
    steps = {128e6: 7_812, 512e6: 31_250, 1.28e9: 78_125, 12.8e9: 142_045}[samples]
    assert train.total_steps(100) == steps
    assert (optim.lr, optim.betas) == ((1e-3, (0.9, 0.95)) if full else (5e-4, (0.9, 0.98)))
    assert (optim.warmup, optim.eps, optim.weight_decay) == (10_000 if full else 500, 1e-6, 0.2)
    assert (optim.schedule, optim.min_lr_ratio, train.precision, recipe.seed) == ("cosine", 0.0, "bf16", 0)
    augment = recipe.augment
    assert augment.crop_scale == ((0.4, 1.0) if full else (0.9, 1.0)) and augment.flip == 0
    assert augment.color_jitter == ((0.32, 0.32, 0.32, 0.08) if full else None)
    assert augment.grayscale_prob == (0.2 if full else 0) and augment.color_jitter_prob == 0.8
    for planned in (recipe, clip) if path.stem in PLANNED else ():
        shown = dict(plan_pretrain.plan(planned, tmp_path).facts)
        assert "224 px" in shown["tower"] and str(steps) in shown["length"]
        assert planned.objective.name in shown["objective"]


def test_superclip_differs_from_superclass_of_its_length_in_objective_pooling_and_rate() -> None:
    published = {"objective.name": "superclip", "tower.pooling": "tok", "train.optim.lr": 1e-3}
    assert load(SUPERCLIP) == load(ROOT / "superclass" / "b16_512m.yaml", **published)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_lit_stage_of_a_published_run_freezes_the_run_it_follows(
    path: Path, tower_run: Path, tmp_path: Path
) -> None:
    changes = {"objective.name": "lit", "tower.name": str(tower_run), "data.train": WORLD}
    recipe = load(path, **changes)
    assert isinstance(recipe, PretrainRecipe)
    # "Same schedule as the run it follows" (the reference's cls_schedule and its LiT configurations).
    followed = load(path, **{"data.train": WORLD})
    assert isinstance(followed, PretrainRecipe) and recipe.train == followed.train
    full = path.stem.endswith("_12.8b")
    steps = {"128m": 7_812, "512m": 31_250, "1.28b": 78_125, "12.8b": 142_045}[path.stem.rpartition("_")[2]]
    assert recipe.train.total_steps(100) == steps and recipe.train.optim.lr == (1e-3 if full else 5e-4)
    if path.stem in PLANNED:
        facts = dict(plan_pretrain.plan(recipe, tmp_path).facts)
        assert "frozen" in facts["tower"] and "text tower" in facts["objective"] and "labels" not in facts
        assert str(steps) in facts["length"]


@pytest.mark.parametrize("size", ["b16", "l16"])
def test_the_arms_of_the_ablations_are_named_and_can_be_set(size: str) -> None:
    path = ROOT / "superclass" / f"{size}_512m.yaml"
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("# Tables 4-7")]
    losses = "objective.loss=bce|asl|soft_margin|two_way"
    assert losses in line and all(
        text in line for text in ("labels.idf=none", "labels.mask_stop_words=true", "labels.tokenizer=word")
    )
    for loss in losses.partition("=")[2].split("|"):
        load(path, **{"objective.loss": loss, "labels.idf": "none"})
    load(path, **{"labels.mask_stop_words": True, "labels.tokenizer": "word"})


@pytest.mark.parametrize("role", ["train", "val"])
def test_a_plan_refuses_data_that_are_not_there(role: str, tmp_path: Path) -> None:
    recipe = load_recipe("pretrain-superclass", None, {"data.train": WORLD, f"data.{role}": "wds:no/such-*.tar"})
    assert isinstance(recipe, PretrainRecipe)
    with pytest.raises(UserError, match="no/such"):
        plan_pretrain.plan(recipe, tmp_path)


def vlm_of(path: Path) -> VLMRecipe:
    """The recipe, or that of its dearest run."""
    recipe = load(path)
    if isinstance(recipe, SweepRecipe):
        return next(iter(sweep.cells(recipe).values()))
    assert isinstance(recipe, VLMRecipe)
    return recipe


@pytest.mark.parametrize("path", PUBLISHED_VLMS, ids=lambda path: path.stem)
def test_published_vlms_have_the_published_settings(path: Path) -> None:
    """The training table of arXiv 2411.03312, which is LLaVA-1.5's, and LLaVA's own for LoRA."""
    recipe = vlm_of(path)
    assert recipe.stage == "both" and recipe.compressor.name == "quecc" and recipe.max_length == 2048
    assert recipe.vision_tower.name == "openai/clip-vit-large-patch14-336" and not recipe.train_tower
    assert recipe.llm.gradient_checkpointing and recipe.align_data is not None
    assert "558k" in str(recipe.align_data.train) and "665k" in str(recipe.data.train)
    for train, batch, steps in ((recipe.align, 256, 2179), (recipe.finetune, 128, 5195)):
        optim = train.optim
        assert (train.epochs, train.global_batch_size, train.micro_batch_size, train.precision) == (
            1,
            batch,
            16,
            "bf16",
        )
        assert train.total_steps({256: 558_000, 128: 665_000}[batch]) == steps
        assert (optim.schedule, optim.warmup, optim.weight_decay, optim.min_lr_ratio) == ("cosine", 0.03, 0.0, 0.0)
        assert (optim.betas, optim.eps, optim.clip_norm) == ((0.9, 0.999), 1e-8, 1.0)
    assert recipe.align.optim.lr == 1e-3 and recipe.align.optim.lr_multipliers == {}
    rates = {name: recipe.finetune.optim.lr * m for name, m in recipe.finetune.optim.lr_multipliers.items()}
    if path.stem.endswith("_lora"):
        assert recipe.lora is not None and (recipe.lora.r, recipe.lora.alpha) == (128, 256)
        assert recipe.finetune.optim.lr == 2e-4 and rates == pytest.approx({"compressor": 2e-5, "projector": 2e-5})
    else:
        assert recipe.lora is None and recipe.finetune.optim.lr == 2e-5 and not rates


def test_the_ladder_is_the_grid_of_the_scaling_law() -> None:
    recipe = load(VLMS / "qwen15_ladder.yaml")
    assert isinstance(recipe, SweepRecipe)
    cells = {(cell.llm.name, *cell.compressor.counts) for cell in sweep.cells(recipe).values()}
    assert cells == {(llm, n) for llm in ("0.5b", "1.8b", "4b", "7b") for n in (1, 4, 16, 36, 64, 144, 576)}


@pytest.mark.parametrize("tokens", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 16, 36, 64, 144, 576))])
def test_the_number_of_tokens_is_a_dial(tokens: int, tmp_path: Path) -> None:
    recipe = load(PUBLISHED_VLMS[0], **{**_LOCAL, "stage": "align", "compressor.num_visual_tokens": tokens})
    assert isinstance(recipe, VLMRecipe)
    plan = plan_vlm.plan(recipe, tmp_path)
    assert plan.figures["visual_tokens"] == tokens and plan.figures["stages"]["align"]["global_batch_size"] == 256


def test_published_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    recipe = load(PUBLISHED_VLMS[0], **{"vision_tower.name": "ViT-L-14-336"})
    assert isinstance(recipe, VLMRecipe)
    with pytest.raises(UserError, match=r"blip_laion_cc_sbu_558k\.json cannot be read"):
        plan_vlm.plan(recipe, tmp_path)
