"""The plan of a pretraining run: what the names stand for and what it needs, without making a weight."""

from __future__ import annotations

from pathlib import Path

import torch

from vlmkit.config import LabelConfig, PretrainRecipe
from vlmkit.data.caption_tokenizers import ClipTokenizer, FileTokenizer
from vlmkit.data.samples import CaptionSource
from vlmkit.data.sources.opener import open_captions
from vlmkit.models.vision_tower import VisionTower
from vlmkit.pipelines.fit import PassProgress
from vlmkit.pipelines.frozen_features import features_bytes, why_uncached
from vlmkit.pipelines.plans.plan import Plan, gigabytes, length, memory_here, model_bytes, number, world_size
from vlmkit.tasks.build import needs, parts_of
from vlmkit.training.metrics import Progress


def plan(recipe: PretrainRecipe, out: Path, progress: Progress | None = None) -> Plan:
    """What the run would be, and whether its weights and optimizer fit here. Raises UserError for unusable input.

    ``progress`` shows data being indexed, which at their first use can take minutes.
    """
    with PassProgress(progress, "index") as passes:
        source = open_captions(recipe.data.train, passes)
        held_out = open_captions(recipe.data.val, passes) if recipe.data.val else None
    classes = num_labels(recipe.labels) if "label_ids" in needs(recipe.objective) else 0
    with torch.device("meta"):
        parts = parts_of(recipe, classes)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    frozen = sizes["vision tower"] if recipe.objective.name == "lit" else 0
    trained = sum(sizes.values()) - frozen
    needed = model_bytes(trained, frozen, recipe.train, world_size())
    available, where = memory_here(recipe.train.device)
    tower = parts["vision tower"]
    assert isinstance(tower, VisionTower)
    described = f"{recipe.tower.name}: {number(sizes['vision tower'])} parameters{', frozen' if frozen else ''}"
    heads = ", ".join(f"{name} {number(size)}" for name, size in sizes.items() if name != "vision tower")
    facts = [
        ("run", str(out)),
        ("objective", f"{_objective(recipe)}; {heads}"),
        ("tower", f"{described}, {tower.image_size} px, grid {tower.grid}, pooling {tower.pooling}"),
        ("data", f"{recipe.data.train}: {len(source)} images with captions"),
        ("held out", f"{recipe.data.val}: {len(held_out)} images with captions" if held_out else "none"),
        ("length", length(recipe.train, len(source))),
        (
            "memory",
            f"{gigabytes(needed)} for weights and optimizer plus activations; {gigabytes(available)} free on {where}",
        ),
    ]
    if classes:
        facts.insert(3, ("labels", _labels(recipe.labels, classes)))
    if frozen:
        facts.insert(3, ("features", _features(recipe, source, tower.width)))
    obstacle = None
    if needed > available:
        obstacle = (
            f"{recipe.tower.name} needs {gigabytes(needed)} for its weights and optimizer, but {where} has "
            f"{gigabytes(available)} free; choose a smaller --tower, or --set train.parallel=fsdp on several GPUs."
        )
    return Plan("pretrain-superclass", tuple(facts), obstacle)


def num_labels(labels: LabelConfig) -> int:
    """Size of the label vocabulary; of the word tokenizer, whose corpus is unread, the largest it can be."""
    if labels.tokenizer == "clip":
        return ClipTokenizer(labels.context_length).vocab_size
    if labels.tokenizer == "word":
        return labels.vocab_size + 1
    return FileTokenizer.open(labels.tokenizer, labels.context_length).vocab_size


def _features(recipe: PretrainRecipe, source: CaptionSource, width: int) -> str:
    reason = why_uncached(recipe, source, width)
    if reason is not None:
        return f"computed in every step: {reason}"
    return f"computed once and kept on disk, {gigabytes(features_bytes(source, width))}"


def _objective(recipe: PretrainRecipe) -> str:
    objective = recipe.objective
    return f"{objective.name}, {objective.loss} loss" if "label_ids" in needs(objective) else objective.name


def _labels(labels: LabelConfig, classes: int) -> str:
    masks = ["special ids kept"] * (not labels.mask_special_ids)
    masks += ["stop words masked"] * labels.mask_stop_words
    masks += [f"tokens of fewer than {labels.min_captions} captions masked"] * (labels.min_captions > 0)
    return ", ".join([f"{classes} tokens ({labels.tokenizer})", f"IDF {labels.idf}", *masks])
