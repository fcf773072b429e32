"""Matching images with captions among all pairs of an optimizer step (CLIP, SigLIP)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlmkit.contracts import Batch
from vlmkit.losses.contrastive import contrastive_loss
from vlmkit.models.contrastive import ContrastiveHead
from vlmkit.tasks.objective import EmbedAhead

MATCHES_AT = (1, 5)


class _Known(NamedTuple):
    """A micro-batch's share of the step's loss, and the whole loss's gradients by what the micro-batch computes."""

    loss: Tensor
    gradients: tuple[Tensor, ...]


class ContrastiveObjective(nn.Module):
    """Batches hold ``text_ids`` int64 [B, 77]: captions as CLIP ids. ``kind`` names the loss.

    Every pair of the step counts, over all micro-batches and ranks. A step of one micro-batch computes its loss in one
    pass. A longer one embeds all its micro-batches ahead, without gradients, differentiates the loss by the embeddings,
    and has each micro-batch carry the gradients of its own on (GradCache, arXiv 2101.06983): a second forward pass, and
    beside a micro-batch's memory that of all embeddings and of some rows of logits (``losses.contrastive``). It is
    exact but for layers that are random or see the batch (batch norm).

    The optimizer keeps the logit scale between 1 and 100, as open_clip does.
    """

    limits: Mapping[str, tuple[float, float]] = {"logit_scale": (0.0, math.log(100))}

    def __init__(self, head: ContrastiveHead, kind: Literal["clip", "siglip"]) -> None:
        super().__init__()
        self.head = head
        self.kind = kind
        self._ahead: deque[_Known] = deque()

    def begin_step(self, micro_batches: Sequence[Batch], embed_ahead: EmbedAhead) -> int:
        """Embed a step of several micro-batches ahead. Every rank holds as many samples, so counting them is free."""
        self._ahead.clear()
        if len(micro_batches) > 1:
            self._ahead.extend(self._differentiate_ahead(micro_batches, embed_ahead()))
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        return sum(len(batch["text_ids"]) for batch in micro_batches) * world_size

    def _differentiate_ahead(self, micro_batches: Sequence[Batch], features: Sequence[Tensor]) -> list[_Known]:
        with torch.no_grad():
            pairs = [self._embed(*inputs) for inputs in zip(features, micro_batches, strict=True)]
            images, texts = (torch.cat(side) for side in zip(*pairs, strict=True))
            leaves = [tensor.detach().requires_grad_() for tensor in (images, texts, *self.head.scalars())]
        loss = contrastive_loss(self.kind, *leaves)
        gradients = torch.autograd.grad(loss, leaves)
        sizes = [len(batch["text_ids"]) for batch in micro_batches]
        rows = zip(*(gradient.split(sizes) for gradient in gradients[:2]), strict=True)
        share = 1 / len(micro_batches)
        scalars = tuple(gradient * share for gradient in gradients[2:])
        return [_Known(loss.detach() * share, (*parts, *scalars)) for parts in rows]

    def _embed(self, features: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.head.embed_image(features), self.head.embed_text(batch["text_ids"])

    def loss_sum(self, features: Tensor, batch: Batch) -> Tensor:
        tensors = [*self._embed(features, batch), *self.head.scalars()]
        if not self._ahead:
            return contrastive_loss(self.kind, *tensors)
        known = self._ahead.popleft()
        carrier = torch.stack([(t * g).sum() for t, g in zip(tensors, known.gradients, strict=True)]).sum()
        return known.loss + (carrier - carrier.detach())  # the value of the one, the gradients of the other

    def held_out(self, features: Tensor, batch: Batch) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """The loss within the batch, and ``val/image_to_text@k`` for k of 1 and 5: the share of images whose caption is
        among the k of the batch that match best (another image's equal caption is as good). All of them depend on the
        size of the held-out batches: more captions are harder to tell apart."""
        images, texts = self._embed(features, batch)
        loss = contrastive_loss(self.kind, images, texts, *self.head.scalars(), gather=False)
        captions = batch["text_ids"]
        with torch.autocast(images.device.type, enabled=False):
            similarity = images @ texts.T
        top = similarity.topk(min(max(MATCHES_AT), len(texts)), dim=1).indices
        hits = (captions[top] == captions[:, None]).all(2)
        count = float(len(captions))
        return loss, {f"val/image_to_text@{k}": (float(hits[:, :k].any(1).sum()), count) for k in MATCHES_AT}

    def parts(self) -> dict[str, Iterable[nn.Parameter]]:
        head = self.head
        parts: dict[str, Iterable[nn.Parameter]] = {
            "projection": [head.projection],
            "text_tower": head.text.parameters(),
            "logit_scale": [head.logit_scale],
        }
        return parts if head.logit_bias is None else {**parts, "logit_bias": [head.logit_bias]}
