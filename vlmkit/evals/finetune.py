"""Fine-tuning: the whole tower with a linear head, on labelled images, for a short budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from vlmkit.config import AugmentConfig, OptimConfig, TrainConfig
from vlmkit.contracts import Batch, LossOutput
from vlmkit.data.draws import Draws
from vlmkit.data.images import TrainTransform, decode_image
from vlmkit.data.loader import Stream
from vlmkit.data.sources.opener import LabelledSource
from vlmkit.evals.probes.features import read_out, shared_attributes
from vlmkit.evals.probes.result import ProbeResult
from vlmkit.evals.progress import shown
from vlmkit.evals.short_training import train_briefly
from vlmkit.models.open_clip_layout import export_open_clip
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower
from vlmkit.tasks.parameter_groups import parameter_groups
from vlmkit.training.metrics import Progress

BUDGET = TrainConfig(
    epochs=5,
    global_batch_size=64,
    optim=OptimConfig(lr=5e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, warmup=0.1),
)
"""Five passes of AdamW with a cosine to zero, the same for a pretrained and a random tower: no setting is searched."""
AUGMENT = AugmentConfig()
"""As in pretraining by default: crops of 0.9 to 1 of the area, no flips (labels may name letters or sides)."""

NO_LABEL = -1
"""Index of the class of an attribute that an image does not have."""


def finetune(
    tower: VisionTower,
    train: LabelledSource,
    test: LabelledSource,
    *,
    budget: TrainConfig = BUDGET,
    batch_size: int = 128,
    progress: Progress | None = None,
    description: str = "finetune",
) -> list[ProbeResult]:
    """Train ``tower`` (in place) on the attributes that both sources label, together; its accuracy on ``test``.

    ``batch_size`` is that of the test images. Raises UserError where the sources share no attribute or cannot be read,
    and Interrupted when a signal stopped the training.
    """
    attributes = shared_attributes(train, test)
    with seeded(0):
        task = ClassificationTask(tower, {name: train.classes[name] for name in attributes})
    stream = Stream(
        LabelledLoader(train, attributes, tower.image_size),
        train,
        collate_labelled,
        global_batch_size=budget.global_batch_size,
        micro_batch_size=budget.micro_batch_size,
        num_workers=budget.num_workers,
    )
    train_briefly(task, stream, budget, len(train), progress=progress, description=description)
    with shown(progress, len(test), f"{description}, test") as report:
        images = read_out(
            [task.eval().logits],
            tower.image_size,
            test,
            batch_size=batch_size,
            device=task.head.weight.device,
            on_progress=report,
        )
    scores = np.split(images.features[0], np.cumsum(task.num_classes)[:-1], axis=1)
    return [
        ProbeResult.of_scores(images, name, of_name, train.classes[name])
        for name, of_name in zip(attributes, scores, strict=True)
        if images.having(name)
    ]


class LabelledLoader:
    """Item (index, epoch) of a labelled source: augmented pixels [3, S, S] and class indices [A], NO_LABEL if absent.

    The augmentation is drawn from (index, epoch).
    """

    def __init__(self, source: LabelledSource, attributes: Sequence[str], image_size: int) -> None:
        self._source, self._attributes = source, attributes
        self._transform = TrainTransform(image_size, AUGMENT)

    def __call__(self, index: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self._source[index]
        labels = torch.tensor([sample.labels.get(name, NO_LABEL) for name in self._attributes])
        return self._transform(decode_image(sample.image), Draws(index, epoch)), labels


def collate_labelled(items: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Batch:
    """``pixel_values`` uint8 [B, 3, S, S] and ``labels`` int64 [B, A]."""
    pixels, labels = zip(*items, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": torch.stack(labels)}


class ClassificationTask(nn.Module):
    """A tower with one linear head for all attributes side by side. A target is a label of an image.

    ``classes`` names the classes of each attribute, in the order of the columns of ``labels``.
    """

    def __init__(self, tower: VisionTower, classes: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.tower = tower
        self.num_classes = [len(names) for names in classes.values()]
        self.head = nn.Linear(tower.width, sum(self.num_classes))

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, classes of all attributes] for images [B, 3, S, S]."""
        return self.head(self.tower.pooled(pixel_values))

    def begin_step(self, micro_batches: Sequence[Batch]) -> int:
        """The number of labels of the step over all ranks."""
        total = sum((batch["labels"] != NO_LABEL).sum() for batch in micro_batches)
        assert isinstance(total, torch.Tensor)
        if dist.is_initialized():
            dist.all_reduce(total)
        return int(total)

    def forward(self, batch: Batch) -> LossOutput:
        """Summed cross entropy over the labels of one micro-batch."""
        logits = self.logits(batch["pixel_values"]).split(self.num_classes, dim=1)
        labels = batch["labels"].unbind(1)
        loss_sum = logits[0].new_zeros(())
        num_correct = torch.zeros((), dtype=torch.int64, device=loss_sum.device)
        for scores, wanted in zip(logits, labels, strict=True):
            loss_sum = loss_sum + F.cross_entropy(scores, wanted, ignore_index=NO_LABEL, reduction="sum")
            num_correct += (scores.argmax(dim=1) == wanted).sum()
        num_targets = int((batch["labels"] != NO_LABEL).sum())
        return LossOutput(loss_sum, num_targets, {"train/accuracy": (num_correct, num_targets)})

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """``val/loss`` and ``val/accuracy`` over labels."""
        output = self(batch)
        num_correct, num_targets = output.metrics["train/accuracy"]
        return {
            "val/loss": (float(output.loss_sum), output.num_targets),
            "val/accuracy": (float(num_correct), num_targets),
        }

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        """Groups of the parts ``vision_tower`` and ``head``."""
        parts = {"vision_tower": self.tower.parameters(), "head": self.head.parameters()}
        return parameter_groups(parts, optim, owner="fine-tuning")

    def shard_units(self) -> list[nn.Module]:
        """The blocks of the tower."""
        return self.tower.blocks()

    def export(self, directory: str) -> None:
        """Write the tower in open_clip's layout, and beside it the head, into ``directory``."""
        export_open_clip(self.tower, directory)
        save_file(dict(self.head.named_parameters()), Path(directory) / "head.safetensors")
