"""Whole training steps: SuperClass and CLIP by vlmkit, and CLIP by open_clip's own model and loss on the same tower.

    python benchmarks/training_step.py

A step is forward, loss, backward and AdamW on a batch in memory; loading is left out. Every candidate trains the same
vision tower on the same images and captions, and the CLIP ones the same text tower (open_clip's pairing). vlmkit starts
from uint8 images and normalises them in the step, open_clip's model gets them normalised. With --compile the blocks of
all towers are compiled, of open_clip's model as of vlmkit's. MFU is the model's FLOPs, counted over forward and
backward on two images, to those of products of large random matrices, timed in turn with the steps.

Takes about six minutes on two cores; to see that it works, give --towers ViT-mini-8-64 --repeats 2. On one GPU:

    python benchmarks/training_step.py --device cuda --bf16 --compile --profile --towers ViT-B-16=512 ViT-L-14=256
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import count_flops, kernel_table, matrix_product, peak_bytes, write_results
from open_clip import CLIP
from open_clip.loss import ClipLoss

from vlmkit.config import PretrainRecipe
from vlmkit.contracts import Batch
from vlmkit.data.caption_tokenizers import ClipTokenizer, build_label_tokenizer
from vlmkit.data.captions import CaptionCollate, CaptionLoader
from vlmkit.data.disk_cache import cache_folder
from vlmkit.data.sources.opener import open_captions
from vlmkit.models.vision_tower import build_tower
from vlmkit.pipelines.timing import interleaved_seconds
from vlmkit.recipe import load_recipe
from vlmkit.tasks.build import build_task
from vlmkit.training import distributed
from vlmkit.training.optim import Optimizer, clip_gradients

TOWERS = ["ViT-mini-8-64=64", "ViT-S-16=32"]
PEER, MATRICES = "open_clip: clip", "matrices"

Row = dict[str, Any]
Step = Callable[[Batch], float]
"""One optimizer step on a batch; returns its loss."""


def recipe_of(tower: str, batch: int, objective: str, args: argparse.Namespace) -> PretrainRecipe:
    """A recipe without gradient clipping, which open_clip does not do by default either."""
    overrides = {
        "tower.name": tower,
        "objective.name": objective,
        "train.steps": 1,
        "train.global_batch_size": batch,
        "train.precision": "bf16" if args.bf16 else "fp32",
        "train.compile": args.compile,
        "train.device": args.device.type,
        "train.optim.clip_norm": None,
    }
    recipe = load_recipe("pretrain-superclass", None, overrides)
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def draw_batch(recipe: PretrainRecipe, image_size: int, device: torch.device) -> Batch:
    """Images of the embedded world, resized to ``image_size``, with label ids and text ids of their captions."""
    source = open_captions(recipe.data.train)
    labels = build_label_tokenizer(recipe.labels, source, cache_folder("captions"))
    load = CaptionLoader(source, image_size, augment=recipe.augment)
    collate = CaptionCollate(labels, ClipTokenizer())
    batch = collate([load(index, 0)() for index in range(recipe.train.global_batch_size)])
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def normalised(batch: Batch, preprocess: dict[str, Any]) -> Batch:
    """The batch as open_clip's loader would hand it over."""
    pixels = batch["pixel_values"]
    mean, std = (torch.tensor(preprocess[key], device=pixels.device).view(3, 1, 1) for key in ("mean", "std"))
    return {**batch, "pixel_values": (pixels.float() / 255 - mean) / std}


def first_two(batch: Batch) -> Batch:
    """The same of two samples."""
    return {name: value[:2] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def vlmkit_step(recipe: PretrainRecipe) -> Step:
    """A step as the trainer makes it."""
    train, context = recipe.train, distributed.setup(recipe.train.device)
    source = open_captions(recipe.data.train)
    task = build_task(recipe, build_label_tokenizer(recipe.labels, source, cache_folder("captions")))
    model = distributed.wrap(task, train, context).train()
    optimizer = Optimizer(task, train.optim, train.total_steps(len(source)))

    def step(batch: Batch) -> float:
        with distributed.autocast(train, context):
            num_targets = task.begin_step([batch])
            output = model(batch)
        loss = output.loss_sum / num_targets
        loss.backward()
        clip_gradients(optimizer.parameters, train.optim.clip_norm)
        optimizer.step(0)
        return loss.item()

    return step


def open_clip_step(recipe: PretrainRecipe, device: torch.device) -> Step:
    """The same by open_clip's CLIP and ClipLoss, in the order of its training loop."""
    task = build_task(recipe, None)
    assert task.contrastive is not None
    text = task.contrastive.head.text_part()
    vision_cfg = task.tower.config["model_cfg"]["vision_cfg"]
    model = CLIP(text.projection.shape[1], vision_cfg, text.text_cfg, output_dict=True).to(device).train()
    if recipe.train.compile:
        for block in [*model.visual.transformer.resblocks, *model.transformer.resblocks]:
            block.compile()
    optim = recipe.train.optim
    parts = {decays: [p for p in model.parameters() if (p.ndim >= 2) == decays] for decays in (True, False)}
    groups = [{"params": parts[True], "weight_decay": optim.weight_decay}, {"params": parts[False]}]
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=0.0, fused=True)
    criterion = ClipLoss()

    def step(batch: Batch) -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            outputs = model(batch["pixel_values"], batch["text_ids"])
            loss = criterion(**outputs, output_dict=True)["contrastive_loss"]
        loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return float(loss.detach())

    return step


def measure(tower: str, size: int, args: argparse.Namespace) -> tuple[list[Row], str | None]:
    """A line for each candidate on this tower, and with --profile where vlmkit's SuperClass step spends its time."""
    torch.compiler.reset()  # beside the shapes of the tower before, those of this one would be compiled as variable
    device = args.device
    recipes = {name: recipe_of(tower, size, name, args) for name in ("superclass", "clip")}
    built = build_tower(tower)
    batch = draw_batch(recipes["superclass"], built.image_size, device)
    candidates = {PEER: open_clip_step(recipes["clip"], device)}
    candidates |= {f"vlmkit: {name}": vlmkit_step(recipe) for name, recipe in recipes.items()}
    batches = dict.fromkeys(candidates, batch) | {PEER: normalised(batch, built.config["preprocess_cfg"])}
    flops = {name: count_flops(partial(step, first_two(batches[name]))) / 2 for name, step in candidates.items()}
    steps = {name: partial(step, batches[name]) for name, step in candidates.items()}
    for step in steps.values():
        step()  # the optimizer's state exists from here on, and is no part of what a step takes
    megabytes = {name: peak_bytes(step, device) / 1e6 for name, step in steps.items()}
    multiply, products = matrix_product(device, torch.bfloat16 if args.bf16 else torch.float32)
    seconds = interleaved_seconds({**steps, MATRICES: multiply}, args.repeats, device)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    matrix_rate = products / median[MATRICES]
    rows = [
        {
            "tower": tower,
            "batch": size,
            "step": name,
            "seconds": seconds[name],
            "images/s": size / median[name],
            "speed of open_clip's": median[PEER] / median[name],
            "peak MB": megabytes[name],
            "memory of open_clip's": megabytes[name] / megabytes[PEER],
            "GFLOP an image": flops[name] / 1e9,
            "matrix TFLOP/s": matrix_rate / 1e12,
            "MFU": flops[name] * size / median[name] / matrix_rate,
        }
        for name in steps
    ]
    return rows, kernel_table(steps["vlmkit: superclass"], device) if args.profile else None


def tower_and_batch(text: str) -> tuple[str, int | None]:
    """What --towers takes."""
    name, _, batch = text.partition("=")
    return name, int(batch) if batch else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=TOWERS, help=f"TOWER[=BATCH]; default {' '.join(TOWERS)}")
    parser.add_argument("--batch", type=int, default=32, help="images of a step where --towers does not say")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16 instead of float32")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of all towers")
    parser.add_argument("--profile", action="store_true", help="write down where vlmkit's SuperClass step spends time")
    args = parser.parse_args()
    rows: list[Row] = []
    profiles = {}
    for tower, batch in map(tower_and_batch, args.towers):
        measured, profile = measure(tower, batch or args.batch, args)
        rows += measured
        if profile is not None:
            profiles[f"profile-{tower}"] = profile
    about = vars(args) | {"device": str(args.device), "threads": torch.get_num_threads()}
    files = write_results("training_step", args.device, about, rows, profiles)
    print(files[1].read_text() + "\nwritten: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
