"""Whole training steps: SuperClass and CLIP by vlmkit, and CLIP by open_clip's own model and loss on the same tower.

    python benchmarks/training_step.py

A step is forward, loss, backward and AdamW on a batch in memory; loading is left out. Every candidate trains the same
vision tower on the same images and captions, and the CLIP ones the same text tower (open_clip's pairing). Takes about
six minutes on two cores; to see that it works, give --towers ViT-mini-8-64 --repeats 2.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from measuring import interleaved_seconds, peak_bytes, write_results
from open_clip import CLIP
from open_clip.loss import ClipLoss

from vlmkit.config import PretrainRecipe
from vlmkit.contracts import Batch
from vlmkit.data.caption_tokenizers import ClipTokenizer, build_label_tokenizer
from vlmkit.data.captions import CaptionCollate, CaptionLoader
from vlmkit.data.disk_cache import cache_folder
from vlmkit.data.sources import open_captions
from vlmkit.models.vision_tower import build_tower
from vlmkit.recipe import load_recipe
from vlmkit.tasks.build import build_task
from vlmkit.training import distributed
from vlmkit.training.optim import Optimizer, clip_gradients

BATCHES = {"ViT-mini-8-64": 64, "ViT-S-16": 32}
"""The towers, and the images of a step on each."""
PEER = "open_clip: clip"

Row = dict[str, Any]


def recipe_of(tower: str, objective: str, args: argparse.Namespace) -> PretrainRecipe:
    """A recipe without gradient clipping, which open_clip does not do by default either."""
    overrides = {
        "tower.name": tower,
        "objective.name": objective,
        "train.steps": 1,
        "train.global_batch_size": args.batch or BATCHES.get(tower, 32),
        "train.precision": "bf16" if args.bf16 else "fp32",
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
    batch = collate([load(index, 0) for index in range(recipe.train.global_batch_size)])
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def vlmkit_step(recipe: PretrainRecipe, batch: Batch, device: torch.device) -> Callable[[], float]:
    """One optimizer step as the trainer makes it; returns its loss."""
    source = open_captions(recipe.data.train)
    task = build_task(recipe, build_label_tokenizer(recipe.labels, source, cache_folder("captions"))).to(device)
    task.train()
    optimizer = Optimizer(task, recipe.train.optim, recipe.train.total_steps(len(source)))

    def step() -> float:
        with distributed.autocast(recipe.train, distributed.setup(device.type)):
            num_targets = task.begin_step([batch])
            output = task(batch)
        loss = output.loss_sum / num_targets
        loss.backward()
        clip_gradients(optimizer.parameters, recipe.train.optim.clip_norm)
        optimizer.step(0)
        return loss.item()

    return step


def open_clip_step(recipe: PretrainRecipe, batch: Batch, device: torch.device) -> Callable[[], float]:
    """The same by open_clip's CLIP and ClipLoss, in the order of its training loop; returns the loss."""
    task = build_task(recipe, None)
    assert task.contrastive is not None
    text = task.contrastive.head.text_part()
    config = task.tower.config
    embed_dim = text.projection.shape[1]
    model = CLIP(embed_dim, config["model_cfg"]["vision_cfg"], text.text_cfg, output_dict=True).to(device).train()
    mean, std = (torch.tensor(config["preprocess_cfg"][key], device=device).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (batch["pixel_values"].float() / 255 - mean) / std
    optim = recipe.train.optim
    parts = {decays: [p for p in model.parameters() if (p.ndim >= 2) == decays] for decays in (True, False)}
    groups = [{"params": parts[True], "weight_decay": optim.weight_decay}, {"params": parts[False]}]
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=0.0, fused=True)
    criterion = ClipLoss()

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            loss = criterion(**model(pixels, batch["text_ids"]), output_dict=True)["contrastive_loss"]
        loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return float(loss.detach())

    return step


def measure(tower: str, args: argparse.Namespace) -> list[Row]:
    """A line for each candidate on this tower."""
    recipes = {name: recipe_of(tower, name, args) for name in ("superclass", "clip")}
    batch = draw_batch(recipes["superclass"], build_tower(tower).image_size, args.device)
    steps = {PEER: open_clip_step(recipes["clip"], batch, args.device)}
    steps |= {f"vlmkit: {name}": vlmkit_step(recipe, batch, args.device) for name, recipe in recipes.items()}
    for step in steps.values():
        step()  # the optimizer's state exists from here on, and is no part of what a step takes
    megabytes = {name: peak_bytes(step, args.device) / 1e6 for name, step in steps.items()}
    seconds = interleaved_seconds(steps, args.repeats, args.device)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    size = recipes["clip"].train.global_batch_size
    return [
        {
            "tower": tower,
            "batch": size,
            "step": name,
            "seconds": seconds[name],
            "images/s": size / median[name],
            "speed of open_clip's": median[PEER] / median[name],
            "peak MB": megabytes[name],
            "memory of open_clip's": megabytes[name] / megabytes[PEER],
        }
        for name in steps
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=list(BATCHES), help=f"default {' '.join(BATCHES)}")
    parser.add_argument("--batch", type=int, help="images of a step; default 64 for the embedded tower, 32 for others")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16 instead of float32")
    args = parser.parse_args()
    rows = [row for tower in args.towers for row in measure(tower, args)]
    about = vars(args) | {"device": str(args.device), "threads": torch.get_num_threads()}
    files = write_results("training_step", args.device, about, rows)
    print(files[-1].read_text() + "\nwritten: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
