"""SuperClass pretraining: classify an image into the set of tokens of its caption (arXiv 2411.03313)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from vlmkit.config import OptimConfig
from vlmkit.contracts import Batch, LossOutput
from vlmkit.errors import UserError
from vlmkit.losses.bag_of_tokens import bag_of_tokens_loss
from vlmkit.losses.token_frequency import TokenFrequency, normalise_rows
from vlmkit.models.open_clip_layout import export_open_clip
from vlmkit.models.superclass import SuperClassModel

if TYPE_CHECKING:
    from vlmkit.data.captions import CaptionTokenizer

RECALL_AT = (5, 20)


class SuperClassTask(nn.Module):
    """The SuperClass model with its loss. A batch holds ``pixel_values`` uint8 [B, 3, S, S] and ``label_ids``
    int64 [B, L]: the distinct token ids of each caption, padded with -1. A target is a sample.

    ``idf`` "running" weighs tokens by their inverse document frequency so far, the current step included; "none"
    weighs all alike. Captions are counted either way.
    """

    def __init__(
        self, model: SuperClassModel, tokenizer: CaptionTokenizer, idf: Literal["running", "none"] = "running"
    ) -> None:
        super().__init__()
        self.model = model
        self.frequency = TokenFrequency(model.head.out_features)
        self.tokenizer = tokenizer
        self.idf = idf

    def begin_step(self, micro_batches: Sequence[Batch]) -> int:
        """Count the captions of the step; the number of samples over all ranks comes with the same collective."""
        return self.frequency.update([batch["label_ids"] for batch in micro_batches])

    def forward(self, batch: Batch) -> LossOutput:
        """The summed loss of one micro-batch (SuperClass eq. 1-2)."""
        features = self.model.features(batch["pixel_values"])
        return LossOutput(self._loss_sum(features, batch["label_ids"]), len(features))

    def _loss_sum(self, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        running = self.idf == "running"
        targets = self.frequency.normalised(ids) if running else normalise_rows((ids >= 0).float())
        head = self.model.head
        return bag_of_tokens_loss(features, head.weight, head.bias, ids, targets)

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """``val/loss``, and ``val/recall@k`` for k of 5 and 20; no counter moves.

        Recall@k of a caption is the share of its label tokens among the k largest logits, out of the min(k, number
        of labels) that could be; captions without a label are left out. Tokens count alike, whatever ``idf`` is.
        """
        ids = batch["label_ids"]
        features = self.model.features(batch["pixel_values"])
        metrics = {"val/loss": (float(self._loss_sum(features, ids)), float(len(features)))}
        top = self.model.head(features).topk(max(RECALL_AT), dim=1).indices
        hits = (top[:, :, None] == ids[:, None, :]).any(2)
        num_labels = (ids >= 0).sum(1)
        labelled = num_labels > 0
        for k in RECALL_AT:
            recall = hits[labelled, :k].sum(1) / num_labels[labelled].clamp(max=k)
            metrics[f"val/recall@{k}"] = (float(recall.sum()), float(labelled.sum()))
        return metrics

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        """Groups of the parts ``vision_tower`` and ``head``, whose rates ``optim.lr_multipliers`` may scale.

        Weight decay is for tensors of two or more dimensions: norms, biases and the class token have one.
        """
        model = self.model
        parts: dict[str, list[nn.Module]] = {"vision_tower": [model.tower], "head": [model.norm, model.head]}
        unknown = optim.lr_multipliers.keys() - parts.keys()
        if unknown:
            raise UserError(
                f"lr_multipliers names {', '.join(sorted(unknown))}, which SuperClass does not have; "
                f"name one of its parts: {', '.join(parts)}."
            )
        groups = []
        for name, modules in parts.items():
            trained = [p for module in modules for p in module.parameters() if p.requires_grad]
            lr = optim.lr * optim.lr_multipliers.get(name, 1.0)
            matrices = [p for p in trained if p.ndim >= 2]
            vectors = [p for p in trained if p.ndim < 2]
            groups.append({"name": name, "params": matrices, "lr": lr, "weight_decay": optim.weight_decay})
            groups.append({"name": f"{name} vectors", "params": vectors, "lr": lr, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def shard_units(self) -> list[nn.Module]:
        """The blocks of the tower; the head stays with the root, inside whose forward the loss reads its weights."""
        return self.model.tower.blocks()

    def export(self, directory: str) -> None:
        """Write the tower in open_clip's layout, and beside it head, token counts and tokenizer, into ``directory``."""
        out = Path(directory)
        export_open_clip(self.model.tower, out)
        head = {"norm": self.model.norm, "head": self.model.head}
        weights = {f"{part}.{name}": p.detach() for part, m in head.items() for name, p in m.named_parameters()}
        save_file(weights, out / "superclass_head.safetensors")
        save_file(self.frequency.state_dict(), out / "token_counts.safetensors")
        self.tokenizer.save(out)
