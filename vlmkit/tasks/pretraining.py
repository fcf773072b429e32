"""Pretraining from captions: one tower, one objective or several, all under the one loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmkit.config import OptimConfig
from vlmkit.contracts import Batch, LossOutput
from vlmkit.models.open_clip_layout import export_open_clip
from vlmkit.models.superclass import pooled_and_patch_mean
from vlmkit.models.vision_tower import VisionTower
from vlmkit.tasks.classification import ClassificationObjective
from vlmkit.tasks.contrastive import ContrastiveObjective
from vlmkit.tasks.objective import Objective
from vlmkit.tasks.parameter_groups import parameter_groups


class PretrainingTask(nn.Module):
    """A tower that learns from captions by classification, by contrast, or by both, their losses weighted and added.

    A batch holds ``pixel_values`` uint8 [B, 3, S, S], or for a frozen tower ``image_features`` [B, width] in their
    place, and what the objectives read. A target is a sample. A frozen tower stays as it is, in evaluation mode.

    One objective reads the tower's pooled features. Of two, the contrastive one does, and where those are the class
    token, classification reads the mean of the patches, from the same pass (SuperCLIP, arXiv 2512.14480).
    """

    def __init__(
        self,
        tower: VisionTower,
        *,
        classification: ClassificationObjective | None = None,
        contrastive: ContrastiveObjective | None = None,
        weights: Mapping[str, float] | None = None,
        freeze_tower: bool = False,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.classification = classification
        self.contrastive = contrastive
        self.weights = weights or {}
        self.freeze_tower = freeze_tower
        self._ahead: deque[dict[str, torch.Tensor]] = deque()
        tower.requires_grad_(not freeze_tower)
        self.train(self.training)

    @property
    def objectives(self) -> dict[str, Objective]:
        """What the tower learns by, by name."""
        known: dict[str, Objective | None] = {"classification": self.classification, "contrastive": self.contrastive}
        return {name: objective for name, objective in known.items() if objective is not None}

    def train(self, mode: bool = True) -> PretrainingTask:
        """Training mode for what is trained."""
        super().train(mode)
        if self.freeze_tower:
            self.tower.eval()
        return self

    def begin_step(self, micro_batches: Sequence[Batch]) -> int:
        """Prepare each objective for the step; the number of samples over all ranks."""
        self._ahead.clear()
        counts = [
            objective.begin_step(micro_batches, partial(self._embed_ahead, name, micro_batches))
            for name, objective in self.objectives.items()
        ]
        if not self.freeze_tower:  # a frozen tower would only repeat itself
            self._ahead.clear()
        # Older torch keeps weights that autocast has cast without gradients, which would cut the coming passes' graph.
        torch.clear_autocast_cache()
        return counts[0]

    @torch.no_grad()
    def _embed_ahead(self, name: str, micro_batches: Sequence[Batch]) -> list[torch.Tensor]:
        if not self._ahead:
            self._ahead.extend(self._features(batch) for batch in micro_batches)
        return [features[name] for features in self._ahead]

    def forward(self, batch: Batch) -> LossOutput:
        """The summed loss of one micro-batch; metrics are the logit scale and, of two objectives, each one's loss."""
        features = self._ahead.popleft() if self._ahead else self._features(batch)
        count = len(next(iter(features.values())))
        losses = {name: objective.loss_sum(features[name], batch) for name, objective in self.objectives.items()}
        metrics: dict[str, tuple[torch.Tensor | float, float]] = {}
        if len(losses) > 1:
            metrics |= {f"train/{name}_loss": (loss.detach(), count) for name, loss in losses.items()}
        if self.contrastive is not None:
            metrics["train/logit_scale"] = (self.contrastive.head.scalars()[0].detach().exp() * count, count)
        return LossOutput(self._total(losses), count, metrics)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """``val/loss`` and the objectives' own metrics; with two objectives also each one's loss."""
        features = self._features(batch)
        count = float(len(next(iter(features.values()))))
        losses: dict[str, torch.Tensor] = {}
        metrics: dict[str, tuple[float, float]] = {}
        for name, objective in self.objectives.items():
            losses[name], own = objective.held_out(features[name], batch)
            metrics |= own
        if len(losses) > 1:
            metrics |= {f"val/{name}_loss": (float(loss), count) for name, loss in losses.items()}
        return {"val/loss": (float(self._total(losses)), count), **metrics}

    def _total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([self.weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()

    def _features(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What each objective reads of the images: [B, width]."""
        if self.classification is not None and self.contrastive is not None:
            pooled, mean = pooled_and_patch_mean(self.tower, batch["pixel_values"])
            return {"classification": mean, "contrastive": pooled}
        features = batch.get("image_features")
        if features is None:
            features = self.tower.pooled(batch["pixel_values"])
        return dict.fromkeys(self.objectives, features)

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        """Groups of the tower and of the objectives' parts, as far as they are trained."""
        parts: dict[str, Iterable[nn.Parameter]] = {"vision_tower": self.tower.parameters()}
        limits: dict[str, tuple[float, float]] = {}
        for objective in self.objectives.values():
            parts |= objective.parts()
            limits |= objective.limits
        return parameter_groups(parts, optim, owner="this pretraining", limits=limits)

    def shard_units(self) -> list[nn.Module]:
        """The blocks of the towers; heads stay with the root, inside whose forward the losses read their weights."""
        text = [] if self.contrastive is None else self.contrastive.head.blocks()
        return [*self.tower.blocks(), *text]

    def export(self, directory: str) -> None:
        """Write the tower, with its text tower if it has one, in open_clip's layout into ``directory``, and beside it
        what belongs to a classification: head, token counts, tokenizer."""
        out = Path(directory)
        text = None if self.contrastive is None else self.contrastive.head.text_part()
        export_open_clip(self.tower, out, text=text)
        if self.classification is not None:
            self.classification.save(out)
