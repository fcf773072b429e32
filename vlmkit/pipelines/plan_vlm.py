"""The plan of a VLM run: what its names resolve to, what it needs, what it costs. Built on meta tensors."""

from __future__ import annotations

from pathlib import Path

import torch

from vlmkit import registry
from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.data.sources import open_conversations
from vlmkit.models.llm import llm_config
from vlmkit.models.towers import find_tower_config
from vlmkit.models.vlm import VLM, VLMConfig
from vlmkit.pipelines.plan import Plan, gigabytes, length, memory_here, model_bytes, number, world_size
from vlmkit.pipelines.pretrain import is_missing_default
from vlmkit.pipelines.train_vlm import Stage, initial_config, stage_settings, tower_image_size
from vlmkit.scaling.cost import format_flops

TEXT_TOKENS = 50
"""Text tokens assumed beside the visual ones where the plan states costs: the Q = 50 of arXiv 2411.03312."""

WAYS_ON = (
    "go on with --llm PATH (a local model), --llm tiny (embedded), --stage align (the language model frozen), "
    "--weights random (true size, to measure, where it fits) or --dry-run (this plan only)"
)


def plan(recipe: VLMRecipe, out: Path) -> Plan:
    """Everything about the run that can be known before it starts, offline; nothing is loaded or written.

    Raises UserError for unusable input: unknown names, token counts that do not tile the grid, missing data.
    """
    vlm, tower_note = _on_meta(recipe)
    parts = {
        "tower": vlm.vision_tower,
        "joint": torch.nn.ModuleList([vlm.compressor, vlm.projector]),
        "llm": vlm.language_model,
    }
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    stages: list[Stage] = ["align", "finetune"] if recipe.stage == "both" else [recipe.stage]
    needs = {stage: _bytes(recipe, stage, sizes) for stage in stages}
    available, where = memory_here(stage_settings(recipe, stages[-1])[0].device)
    tower, tokens, needed = vlm.vision_tower, max(recipe.compressor.counts), max(needs.values())
    facts = [
        ("run", str(out)),
        ("llm", _describe_llm(recipe, vlm, sizes["llm"])),
        ("tower", f"{tower_note}: {number(sizes['tower'])} parameters, frozen, {tower.image_size} px"),
        ("visual tokens", f"{tokens} of {tower.grid[0] * tower.grid[1]} patches, by {recipe.compressor.name}"),
        ("compressor and projector", f"{number(sizes['joint'])} parameters, trained in every stage"),
        ("cost", _describe_cost(sizes, tower.grid, tokens)),
    ]
    for stage in stages:
        train, data = stage_settings(recipe, stage)
        source = open_conversations(data.train)
        facts.append((stage, f"{length(train, len(source))}; data {data.train}: {len(source)} conversations"))
        facts.append(
            (f"{stage} memory", f"{gigabytes(needs[stage])} for weights, gradients and optimizer, plus activations")
        )
    facts.append(("memory here", f"{gigabytes(available)} free on {where}"))
    obstacle = None
    if needed > available:
        obstacle = (
            f"{recipe.llm.name} with {tokens} visual tokens needs {gigabytes(needed)} for weights, gradients and "
            f"optimizer state, but {where} has {gigabytes(available)} free; {WAYS_ON}."
        )
    return Plan("train-vlm", tuple(facts), obstacle)


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


def _bytes(recipe: VLMRecipe, stage: Stage, sizes: dict[str, int]) -> int:
    trained = sizes["joint"] + (sizes["llm"] if stage == "finetune" else 0)
    return model_bytes(trained, sum(sizes.values()) - trained, stage_settings(recipe, stage)[0], world_size())


def _describe_llm(recipe: VLMRecipe, vlm: VLM, size: int) -> str:
    name = recipe.init or recipe.llm.name
    config = vlm.config.text_config
    shape = f"{number(size)} parameters, {config.num_hidden_layers} layers of width {config.hidden_size}"
    if recipe.init:
        return f"that of {name}: {shape}"
    if not registry.is_llm(name):
        return f"{name}: {shape}"
    facts = registry.llm(name)
    resolved = f"{name} is {facts.name}" if name.lower() != facts.name else facts.name
    if facts.embedded or recipe.llm.weights == "random":
        origin = "fresh weights" if facts.embedded else "random weights, to measure with"
    else:
        origin = f"weights from {facts.hub_id}"
    return f"{resolved}: {shape}; {origin}"


def _describe_cost(sizes: dict[str, int], grid: tuple[int, int], tokens: int) -> str:
    """FLOPs of a sample: prefill 2N(Q + V) (arXiv 2411.03312), the tower 2 FLOPs a weight and patch."""
    prefill = 2 * sizes["llm"] * (TEXT_TOKENS + tokens)
    tower = 2 * sizes["tower"] * grid[0] * grid[1]
    return (
        f"{format_flops(prefill)} for the language model to read {TEXT_TOKENS} text and {tokens} visual tokens "
        f"(times 3 in training), about {format_flops(tower)} for the tower on an image"
    )
