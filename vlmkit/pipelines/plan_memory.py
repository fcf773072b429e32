"""Memory of a training step on each device: exact for weights, gradients and optimizer, estimated for activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vlmkit.config import TrainConfig
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.plan_flops import MeanSample, visual_tokens
from vlmkit.tasks.vlm import VLMTask

_LOGIT_BYTES = 16
"""At their peak, for each logit: itself, its log-probability and the gradients of both, in float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    """Weights made whole for computing (FSDP), or their copies in bfloat16 (autocast under checkpointing)."""
    activations: int
    """What a micro-batch leaves for its backward pass: an estimate."""
    logits: int

    @property
    def state(self) -> int:
        """What is there in every step, whatever its batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.state + self.gathered + self.activations + self.logits


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one device."""

    images: int
    blocks: int
    rows: int
    row_length: int
    labels: int

    @classmethod
    def of(cls, sample: MeanSample, train: TrainConfig, max_length: int, world_size: int) -> MicroBatch:
        """``train.micro_batch_size`` average samples, packed."""
        share = train.global_batch_size // world_size
        samples = min(train.micro_batch_size or share, share)
        tokens = math.ceil(samples * sample.tokens)
        rows = math.ceil(tokens / max_length)
        return cls(
            images=math.ceil(samples * sample.images),
            blocks=math.ceil(samples * sample.blocks),
            rows=rows,
            row_length=math.ceil(tokens / rows),
            labels=math.ceil(samples * sample.labels),
        )


def memory_per_device(task: VLMTask, train: TrainConfig, batch: MicroBatch, recompute: bool, world_size: int) -> Memory:
    """Memory of ``task``, whose model lies on the meta device and is of no use afterwards.

    Left out: what the frozen tower takes in passing, the allocator's fragments, and the libraries' own.
    """
    parameters = list(task.parameters())
    trained = [p for p in parameters if p.requires_grad]
    shards = world_size if train.parallel == "fsdp" else 1
    trained_bytes = 4 * sum(_shard(p, shards) for p in trained)
    frozen_bytes = sum(_shard(p, shards) * p.element_size() for p in parameters if not p.requires_grad)
    gathered = _gathered(task, train, trained, recompute)
    activations = _activations(task.model, train, batch, recompute)
    vocabulary = task.model.get_output_embeddings().get_parameter("weight").shape[0]
    return Memory(
        weights=trained_bytes + frozen_bytes,
        gradients=trained_bytes,
        optimizer=2 * trained_bytes,
        gathered=gathered,
        activations=activations,
        logits=batch.labels * vocabulary * (_LOGIT_BYTES + (2 if train.precision == "bf16" else 0)),
    )


def _shard(parameter: torch.Tensor, shards: int) -> int:
    """Numbers of a parameter on each device: FSDP2 cuts its first dimension and pads the last piece."""
    if parameter.dim() == 0 or shards == 1:
        return parameter.numel()
    return math.ceil(parameter.shape[0] / shards) * parameter.shape[1:].numel()


def _gathered(task: VLMTask, train: TrainConfig, trained: Iterable[torch.Tensor], recompute: bool) -> int:
    size = 2 if train.precision == "bf16" else 4
    if train.parallel == "ddp":
        # Autocast keeps its copies until the forward pass is over; without checkpointing they are saved for the
        # backward pass too, and counted there.
        copied = train.precision == "bf16" and recompute
        return size * sum(p.numel() for p in trained if p.dim() > 1) if copied else 0
    units = [sum(p.numel() for p in unit.parameters()) for unit in task.shard_units()]
    rest = sum(p.numel() for p in task.parameters()) - sum(units)
    # One layer computes while the next arrives; what belongs to no layer stays whole for the whole step.
    return size * (rest + 2 * max(units, default=0))


def _activations(vlm: VLM, train: TrainConfig, batch: MicroBatch, recompute: bool) -> int:
    """Bytes that autograd would keep, found by running one and two layers without numbers."""
    decoder = vlm.language_model.get_decoder()
    layers, width = decoder.layers, vlm.compressor.shape.text_width
    decoder.layers = layers[:2]
    side = vlm.vision_tower.image_size
    sharded = train.parallel == "fsdp" and train.precision == "bf16"
    features = vlm.cacheable_features(torch.empty(1, 3, side, side, dtype=torch.uint8, device="meta")).shape[1:]
    with FakeTensorMode(allow_non_fake_inputs=True):
        vlm.to_empty(device="cpu")
        if sharded:
            nn.Module.to(vlm, torch.bfloat16)
        autocast = train.precision == "bf16" and not sharded
        dtype = next(vlm.projector.parameters()).dtype
        embeds = torch.empty(batch.rows, batch.row_length, width, dtype=dtype, requires_grad=True)
        inputs: dict[str, Any] = {
            "inputs_embeds": embeds,
            "attention_mask": torch.empty(batch.rows, 1, batch.row_length, batch.row_length, dtype=dtype),
            "position_ids": torch.empty(batch.rows, batch.row_length, dtype=torch.long),
            "use_cache": False,
        }
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            visual = _kept(lambda: visual_tokens(vlm, torch.empty(batch.blocks, *features, dtype=dtype)), vlm)
            one, two = (_kept(partial(_run, decoder, layers[:count], inputs), vlm) for count in (1, 2))
    layer = two - one
    if recompute:
        return visual + one + len(layers) * embeds.numel() * embeds.element_size()
    return visual + one + (len(layers) - 1) * layer


def _run(decoder: nn.Module, layers: nn.ModuleList, inputs: dict[str, Any]) -> torch.Tensor:
    decoder.layers = layers
    return decoder(**inputs).last_hidden_state


def _kept(run: Callable[[], torch.Tensor], module: nn.Module) -> int:
    """Bytes of the tensors that ``run`` saves for its backward pass, without the module's own weights."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    own = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    del output
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
