"""Drawn images with random captions, and small runs on them: ``toy_captions.py '[{job}, ...]'`` under torchrun."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmkit.config import PretrainRecipe
from vlmkit.contracts import Batch
from vlmkit.data.captions import CaptionCollate, CaptionItem
from vlmkit.data.loader import Stream
from vlmkit.recipe import load_recipe
from vlmkit.runs import RunDirectory
from vlmkit.tasks.build import build_task
from vlmkit.tasks.pretraining import PretrainingTask
from vlmkit.training.distributed import setup, teardown
from vlmkit.training.trainer import Trainer

VOCAB, START, END = 60, 49406, 49407
OBJECTIVES = ("superclass", "clip", "siglip", "superclip")


class Labels:
    """As much of a label tokenizer as a task and its batches need; its captions are written in ids."""

    vocab_size = VOCAB

    def bags(self, captions: Sequence[str]) -> list[np.ndarray]:
        return [np.array(caption.split(), dtype=np.int64) for caption in captions]

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text("{}")


class Text:
    """As much of a text tokenizer; its ids are not those of the labels."""

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        text = np.zeros((len(captions), 77), dtype=np.int64)
        for row, labels in zip(text, Labels().bags(captions), strict=True):
            row[: len(labels) + 2] = [START, *(labels + 300), END]
        return text


collate = CaptionCollate(Labels(), Text())  # type: ignore[arg-type]


def load(index: int, epoch: int) -> CaptionItem:
    """One flat, noisy colour an image; its caption says which."""
    g = torch.Generator().manual_seed(1000 * epoch + index)
    colour = index % 12
    image = (
        torch.randint(0, 60, (3, 64, 64), generator=g)
        + torch.tensor([colour % 2, colour // 2 % 2, colour // 4])[:, None, None] * 90
    )
    labels = np.unique([colour, 12 + index % 5, *torch.randint(20, VOCAB, (index % 4,), generator=g).tolist()])
    return CaptionItem(image.clamp(max=255).to(torch.uint8), " ".join(map(str, labels)))


def make_batch(indices: Iterable[int]) -> Batch:
    return {**collate([load(index, 0) for index in indices]), "num_bad": 0}


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """The batch in ``count`` equal micro-batches."""
    return [
        {name: value.chunk(count)[part] if torch.is_tensor(value) else value for name, value in batch.items()}
        for part in range(count)
    ]


def recipe(objective: str, **overrides: Any) -> PretrainRecipe:
    text = {"objective.text.width": 16, "objective.text.heads": 2, "objective.text.layers": 1}
    loaded = load_recipe("pretrain-superclass", None, {"objective.name": objective, **text, **overrides})
    assert isinstance(loaded, PretrainRecipe)
    return loaded


def make_task(objective: str, **overrides: Any) -> PretrainingTask:
    return build_task(recipe(objective, **overrides), Labels())  # type: ignore[arg-type]


def run_job(
    out: str | Path,
    objective: str,
    parallel: str = "ddp",
    micro_batch_size: int = 2,
    precision: str = "fp32",
    **overrides: Any,
) -> None:
    """Three steps of the one trainer; the losses end in OUT/metrics.jsonl, the model in OUT/model."""
    train = {
        "steps": 3,
        "global_batch_size": 8,
        "micro_batch_size": micro_batch_size,
        "parallel": parallel,
        "precision": precision,
        "device": "cpu",
        "optim": {"lr": 1e-3, "eps": 1e-4, "warmup": 0.0},
        "log": {"every_steps": 1},
    }
    settings = recipe(objective, train=train, **overrides)
    context = setup("cpu")
    stream = Stream(
        load,
        24,
        collate,
        global_batch_size=8,
        micro_batch_size=micro_batch_size,
        rank=context.rank,
        world_size=context.world_size,
    )
    task = build_task(settings, Labels())  # type: ignore[arg-type]
    trainer = Trainer(settings.train, 0, RunDirectory(out), task, stream, total_steps=3)
    trainer.fit()
    model = Path(out) / "model"
    context.on_main(lambda: model.mkdir(exist_ok=True))
    trainer.export(model)


if __name__ == "__main__":
    for job in json.loads(sys.argv[1]):
        run_job(**job)
    teardown()
