"""The plan of a VLM run: what its names resolve to, what it needs, what it costs. Built on meta tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch

from vlmkit import registry
from vlmkit.config import CompressorConfig, PretrainRecipe, TrainConfig, VLMRecipe
from vlmkit.data.feature_cache import cache_bytes
from vlmkit.data.sources.opener import open_conversations
from vlmkit.models.adapters import add_adapters, is_merged
from vlmkit.models.llm import llm_config
from vlmkit.models.towers import find_tower_config
from vlmkit.models.vlm import VLM
from vlmkit.models.vlm_config import VLMConfig
from vlmkit.pipelines.plans.plan import Plan, gigabytes, length, memory_here, number, world_size
from vlmkit.pipelines.plans.plan_flops import MeanSample, PartFlops, flops_per_sample, language_layers, parameters_of
from vlmkit.pipelines.plans.plan_memory import Memory, MicroBatch, memory_per_device
from vlmkit.pipelines.pretrain import is_missing_default
from vlmkit.pipelines.vlm_models import Stage, initial_config, stage_settings, tower_image_size
from vlmkit.runs import RunDirectory, is_run
from vlmkit.scaling.budgets import format_flops
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training.distributed import DistributedContext, place

TEXT_TOKENS = 50
"""Text tokens assumed beside the visual ones where the plan states the cost of an answer: Q of arXiv 2411.03312."""

WAYS_ON = (
    "go on with --llm PATH (a local model), --llm tiny (embedded), --stage align (the language model frozen), "
    "--weights random (true size, to measure, where it fits) or --dry-run (this plan only)"
)


@dataclass(frozen=True)
class _StagePlan:
    """What one stage is and takes."""

    train: TrainConfig
    data: str
    num_samples: int
    trained: int
    """Weights that train."""
    flops: Mapping[str, PartFlops]
    memory: Memory
    cache: int
    """Bytes of the feature cache that would keep its images."""
    cached: bool
    trains_tower: bool


def plan(recipe: VLMRecipe, out: Path) -> Plan:
    """Everything about the run that can be known before it starts, offline; nothing is loaded or written.

    Raises UserError for unusable input: unknown names, token counts that do not tile the grid, missing data.
    """
    names: list[Stage] = ["align", "finetune"] if recipe.stage == "both" else [recipe.stage]
    stages = {name: _plan_stage(recipe, name) for name in names}
    vlm, tower_note = _on_meta(recipe)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parameters_of(vlm).items()}
    tower, tokens = vlm.vision_tower, vlm.config.num_visual_tokens
    available, where = memory_here(stages[names[-1]].train.device)
    training = "trained in stage finetune" if recipe.train_tower else "frozen"
    facts = [
        ("run", str(out)),
        ("llm", _describe_llm(recipe, vlm, sizes["llm"])),
        ("tower", f"{tower_note}: {number(sizes['tower'])} parameters, {training}, {tower.image_size} px"),
        ("visual tokens", _describe_counts(recipe.compressor, tower.grid[0] * tower.grid[1])),
        ("compressor", f"{number(sizes['compressor'])} parameters, projector {number(sizes['projector'])}"),
        ("answer", _describe_answer(vlm, sizes["llm"])),
    ]
    for name, stage in stages.items():
        facts += _describe_stage(recipe, name, stage)
    facts.append(("memory here", f"{gigabytes(available)} free on {where}"))
    needed = max(stage.memory.state for stage in stages.values())
    obstacle = None
    if needed > available:
        obstacle = (
            f"{recipe.llm.name} with {tokens} visual tokens needs {gigabytes(needed)} for weights, gradients and "
            f"optimizer state, but {where} has {gigabytes(available)} free; {WAYS_ON}."
        )
    figures = {
        "parameters": sizes,
        "visual_tokens": tokens,
        "memory_available": available,
        "stages": {name: _figures(stage) for name, stage in stages.items()},
    }
    return Plan("train-vlm", tuple(facts), obstacle, figures)


def _plan_stage(recipe: VLMRecipe, stage: Stage) -> _StagePlan:
    train, data = stage_settings(recipe, stage)
    source = open_conversations(data.train)
    task = planned_task(recipe, stage)
    vlm = task.model
    counts, all_of_them = recipe.compressor.counts, recipe.compressor.elastic == "all"
    sample = MeanSample.of(source, fmean(counts), vlm.compressor.conditioned, len(counts) if all_of_them else 1)
    # A batch may draw the largest count for every sample, so that is what its memory is planned for.
    largest = sample if all_of_them else replace(sample, num_visual_tokens=max(counts))
    cache = cache_bytes(source, vlm.compressor.cached_shape)
    cached = recipe.feature_cache and not task.train_tower and cache <= recipe.cache_limit_gb * 1e9
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    flops = flops_per_sample(vlm, sample, recipe.llm.gradient_checkpointing, cached)
    batch = MicroBatch.of(largest, train, recipe.max_length, world_size())
    memory = memory_per_device(task, train, batch, recipe, world_size())
    return _StagePlan(train, str(data.train), len(source), trained, flops, memory, cache, cached, task.train_tower)


def planned_task(recipe: VLMRecipe, stage: Stage) -> VLMTask:
    """The task of a stage on the meta device, its weights in the types they train in."""
    vlm, _ = _on_meta(recipe)
    if recipe.lora is not None and stage == "finetune":
        add_adapters(vlm.language_model, recipe.lora.model_copy(update={"quantize": None}), recipe.seed)
    task = VLMTask(vlm, cast(Any, None), stage, recipe.train_tower)  # a plan exports nothing
    place(task, stage_settings(recipe, stage)[0], DistributedContext(0, 1, 0, torch.device("meta")))
    return task


def _on_meta(recipe: VLMRecipe) -> tuple[VLM, str]:
    """The model without storage, and what the tower's name stands for."""
    config = initial_config(recipe)
    if config is not None:
        return _storageless(config), f"of {recipe.init}"
    name = recipe.vision_tower.name
    if is_missing_default(name):
        note = f"{name} (not there yet: pretrained first, with the default recipe)"
        name = PretrainRecipe().tower.name
    else:
        note = name
    config = VLMConfig(
        find_tower_config(name, tower_image_size(name, recipe)),
        llm_config(recipe.llm),
        recipe.compressor.name,
        recipe.compressor.counts,
        image_token_id=0,
        query=recipe.compressor.query,
    )
    return _storageless(config), note


def _storageless(config: VLMConfig) -> VLM:
    with torch.device("meta"):
        return VLM(config)


def _describe_llm(recipe: VLMRecipe, vlm: VLM, size: int) -> str:
    name = recipe.init or recipe.llm.name
    config = vlm.config.text_config
    shape = f"{number(size)} parameters, {config.num_hidden_layers} layers of width {config.hidden_size}"
    if recipe.init:
        return f"that of {name}{_describe_adapters(recipe)}: {shape}"
    if not registry.is_llm(name):
        return f"{name}: {shape}"
    facts = registry.llm(name)
    resolved = f"{name} is {facts.name}" if name.lower() != facts.name else facts.name
    if facts.embedded or recipe.llm.weights == "random":
        origin = "fresh weights" if facts.embedded else "random weights, to measure with"
    else:
        origin = f"weights from {facts.hub_id}"
    return f"{resolved}: {shape}; {origin}"


def _describe_adapters(recipe: VLMRecipe) -> str:
    """What becomes of the adapters of the run that ``recipe.init`` names, if it has some."""
    assert recipe.init is not None
    if not (is_run(recipe.init) and is_merged(RunDirectory(recipe.init).model_dir)):
        return ""
    return ", its adapters merged" + (", under fresh ones" if recipe.lora and recipe.stage != "align" else "")


def _describe_counts(compressor: CompressorConfig, patches: int) -> str:
    described = f"{', '.join(map(str, compressor.counts))} of {patches} patches, by {compressor.name}"
    if len(compressor.counts) == 1:
        return described
    how = {
        "sampled": "one of these drawn for each sample (FLOPs for their mean, memory for the largest)",
        "all": "each sample at all of these",
    }
    return f"{described}; elastic: {how[compressor.elastic]}"


def _describe_answer(vlm: VLM, size: int) -> str:
    """The two costs of a prefill: the law's 2N(Q + V) (arXiv 2411.03312), and what is computed."""
    tokens = TEXT_TOKENS + vlm.config.num_visual_tokens
    exact = language_layers(vlm).forward_flops(tokens)
    return (
        f"{format_flops(exact)} for the layers of the language model to read {TEXT_TOKENS} text and "
        f"{vlm.config.num_visual_tokens} visual tokens; 2N(Q + V) is {format_flops(2 * size * tokens)}"
    )


def _describe_stage(recipe: VLMRecipe, name: Stage, stage: _StagePlan) -> list[tuple[str, str]]:
    flops, memory = stage.flops, stage.memory
    parts = []
    for part, cost in flops.items():
        if cost.total:
            split = f" ({format_flops(cost.forward)} forward)" if cost.total > cost.forward else ""
            parts.append(f"{part} {format_flops(cost.total)}{split}")
    total = sum(cost.total for cost in flops.values())
    kept = f"{gigabytes(memory.weights)} weights, {gigabytes(memory.gradients)} gradients, "
    kept += f"{gigabytes(memory.optimizer)} optimizer"
    more = f"about {gigabytes(memory.activations)} activations, {gigabytes(memory.logits)} logits"
    if memory.gathered:
        more = f"{gigabytes(memory.gathered)} weights made whole or cast, {more}"
    if memory.loading:
        more += f"; {gigabytes(memory.loading)} at the start, before it is sharded"
    return [
        (name, f"{length(stage.train, stage.num_samples)}; data {stage.data}: {stage.num_samples} conversations"),
        (f"{name} trains", f"{number(stage.trained)} parameters"),
        (f"{name} FLOPs", f"{format_flops(total)} a sample: {', '.join(parts)}"),
        (f"{name} memory", f"{gigabytes(memory.total)} on each device at the peak: {kept}; {more}"),
        (f"{name} features", _describe_cache(recipe, stage)),
    ]


def _describe_cache(recipe: VLMRecipe, stage: _StagePlan) -> str:
    size, limit = gigabytes(stage.cache), f"--cache-limit {recipe.cache_limit_gb:g} GB"
    if stage.cached:
        return f"computed once and kept on disk, {size} ({limit})"
    if stage.trains_tower:
        return "computed in every step: the tower trains"
    if recipe.feature_cache:
        return f"computed in every step: no cache is used, for it would take {size}, above {limit}"
    return f"computed in every step: feature_cache is off (the cache would take {size})"


def _figures(stage: _StagePlan) -> dict[str, Any]:
    return {
        "trained_parameters": stage.trained,
        "steps": stage.train.total_steps(stage.num_samples),
        "global_batch_size": stage.train.global_batch_size,
        "samples": stage.num_samples,
        "flops_per_sample": {part: asdict(cost) for part, cost in stage.flops.items()},
        "memory_per_device": {**asdict(stage.memory), "total": stage.memory.total},
        "feature_cache": {"bytes": stage.cache, "used": stage.cached},
    }
