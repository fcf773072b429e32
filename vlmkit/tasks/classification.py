"""Classification of an image into the set of tokens of its caption (SuperClass, arXiv 2411.03313)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from vlmkit.contracts import Batch
from vlmkit.losses.classification import classification_loss
from vlmkit.losses.token_frequency import TokenFrequency, normalise_rows
from vlmkit.losses.two_way import ClassSums, two_way_loss
from vlmkit.models.superclass import SuperClassHead
from vlmkit.tasks.objective import EmbedAhead

if TYPE_CHECKING:
    from vlmkit.data.caption_tokenizers import LabelTokenizer

RECALL_AT = (5, 20)


class ClassificationObjective(nn.Module):
    """Batches hold ``label_ids`` int64 [B, L]: the distinct token ids of each caption, padded with -1.

    ``loss`` is a name of ``classification_loss``. With ``idf``, tokens weigh their inverse document frequency, without
    it all weigh alike; captions are counted either way. The softmax loss takes the weights as shares of a target that
    sums to one (SuperClass eq. 2), the others as they are.

    The two-way loss compares the samples of the whole step. Where the step is divided, among micro-batches or ranks,
    its sums by class are made ahead, without gradients: a second forward pass, exact but for layers that are random or
    see the batch (batch norm).
    """

    limits: Mapping[str, tuple[float, float]] = {}

    def __init__(
        self,
        head: SuperClassHead,
        frequency: TokenFrequency,
        tokenizer: LabelTokenizer,
        loss: str = "softmax",
        idf: bool = True,
    ) -> None:
        super().__init__()
        self.head = head
        self.frequency = frequency
        self.tokenizer = tokenizer
        self.loss = loss
        self.idf = idf
        self._classes: ClassSums | None = None

    def begin_step(self, micro_batches: Sequence[Batch], embed_ahead: EmbedAhead) -> int:
        """Count the captions of the step; the number of samples over all ranks comes with the same collective."""
        num_samples = self.frequency.update([batch["label_ids"] for batch in micro_batches])
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        divided = len(micro_batches) * world_size > 1
        self._classes = self._sums(micro_batches, embed_ahead()) if divided and self.loss == "two_way" else None
        return num_samples

    @torch.no_grad()
    def _sums(self, micro_batches: Sequence[Batch], features: Sequence[torch.Tensor]) -> ClassSums:
        """Of all micro-batches and ranks."""
        classes = ClassSums()
        for rows, batch in zip(features, micro_batches, strict=True):
            classes.add(*self._loss_inputs(rows, batch))
        if dist.is_initialized():
            classes.gather()
        return classes

    def loss_sum(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        whole = self._classes
        loss = classification_loss(self.loss) if whole is None else partial(two_way_loss, classes=whole)
        return loss(*self._loss_inputs(features, batch))

    def _loss_inputs(
        self, features: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        ids, linear = batch["label_ids"], self.head.head
        return self.head.norm(features), linear.weight, linear.bias, ids, self._weights(ids)

    def _weights(self, ids: torch.Tensor) -> torch.Tensor:
        shares = self.loss == "softmax"
        if self.idf:
            return self.frequency.normalised(ids) if shares else self.frequency.weights(ids)
        alike = (ids >= 0).float()
        return normalise_rows(alike) if shares else alike

    def held_out(self, features: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, tuple[float, float]]]:
        """The loss within the batch, and ``val/recall@k`` for k of 5 and 20.

        Recall@k of a caption is the share of its label tokens among the k largest logits, out of the min(k, number
        of labels) that could be; captions without a label are left out. Tokens count alike, whatever ``idf`` is.
        """
        ids = batch["label_ids"]
        logits = self.head(features)
        top = logits.topk(min(max(RECALL_AT), logits.shape[1]), dim=1).indices
        hits = (top[:, :, None] == ids[:, None, :]).any(2)
        num_labels = (ids >= 0).sum(1)
        labelled = num_labels > 0
        metrics = {}
        for k in RECALL_AT:
            recall = hits[labelled, :k].sum(1) / num_labels[labelled].clamp(max=k)
            metrics[f"val/recall@{k}"] = (float(recall.sum()), float(labelled.sum()))
        return classification_loss(self.loss)(*self._loss_inputs(features, batch)), metrics

    def parts(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"head": self.head.parameters()}

    def save(self, directory: Path) -> None:
        """Write head, token counts and tokenizer into ``directory``."""
        weights = {name: parameter.detach() for name, parameter in self.head.named_parameters()}
        save_file(weights, directory / "superclass_head.safetensors")
        save_file(self.frequency.state_dict(), directory / "token_counts.safetensors")
        self.tokenizer.save(directory)
