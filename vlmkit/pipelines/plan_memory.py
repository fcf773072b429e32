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

from vlmkit.config import TrainConfig, VLMRecipe
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.plan_flops import MeanSample, layers_of, visual_tokens
from vlmkit.tasks.vlm import VLMTask

_FOUR_BIT_BYTES = 0.516
"""Of a weight in nf4 with double quantization: half a byte, and its share of the scales (arXiv 2305.14314)."""
_LOGIT_BYTES = 16
"""At their peak, for each logit: itself, its log-probability and the gradients of both, in float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    loading: int
    """The whole model on its device, before it is sharded."""
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
        """What no batch can be too small for."""
        return max(self.loading, self.weights + self.gradients + self.optimizer)

    @property
    def total(self) -> int:
        return max(self.loading, self.state + self.gathered + self.activations + self.logits)


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


def memory_per_device(
    task: VLMTask, train: TrainConfig, batch: MicroBatch, recipe: VLMRecipe, world_size: int
) -> Memory:
    """Memory of ``task``, whose model lies on the meta device, placed, and is of no use afterwards.

    Left out: what the frozen tower takes in passing, the allocator's fragments, and the libraries' own.
    """
    parameters = list(task.parameters())
    trained = [p for p in parameters if p.requires_grad]
    shards = world_size if train.parallel == "fsdp" else 1
    four_bits = set(layers_of(task.model)[1].parameters()) if recipe.lora and recipe.lora.quantize else set()
    held = {p: _shard(p, shards) * p.element_size() for p in parameters}
    held |= {p: round(p.numel() * _FOUR_BIT_BYTES) for p in four_bits if p.dim() > 1 and not p.requires_grad}
    trained_bytes = sum(held[p] for p in trained)
    recompute = recipe.llm.gradient_checkpointing
    vocabulary = task.model.get_output_embeddings().get_parameter("weight").shape[0]
    return Memory(
        loading=sum(p.nbytes for p in parameters) if shards > 1 else 0,
        weights=sum(held.values()),
        gradients=trained_bytes,
        optimizer=2 * trained_bytes,
        gathered=_gathered(task, train, trained, recompute),
        logits=batch.labels * vocabulary * (_LOGIT_BYTES + (2 if train.precision == "bf16" else 0)),
        activations=_activations(task.model, train, batch, recompute),
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
    """Bytes that autograd would keep, found by running one and two layers on tensors without numbers."""
    decoder = vlm.language_model.get_decoder()
    name, layers = layers_of(vlm)
    setattr(decoder, name, layers[:2])
    sharded = train.parallel == "fsdp" and train.precision == "bf16"
    autocast = train.precision == "bf16" and not sharded
    side = vlm.vision_tower.image_size
    if sharded:
        nn.Module.to(vlm, torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        vlm.to_empty(device="cpu")
        images = torch.empty(batch.images, 3, side, side, dtype=torch.uint8)
        inputs = _language_inputs(vlm, batch)
        embeds = inputs["inputs_embeds"]
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            visual = _kept(lambda: _see(vlm, images, batch.blocks), vlm)
            one, two = (_kept(partial(_read, decoder, name, layers[:count], inputs), vlm) for count in (1, 2))
    if recompute:
        return visual + one + len(layers) * embeds.nbytes
    return visual + one + (len(layers) - 1) * (two - one)


def _language_inputs(vlm: VLM, batch: MicroBatch) -> dict[str, Any]:
    dtype, shape = vlm.get_input_embeddings().get_parameter("weight").dtype, (batch.rows, batch.row_length)
    return {
        "inputs_embeds": torch.empty(*shape, vlm.config.text_config.hidden_size, dtype=dtype, requires_grad=True),
        "attention_mask": torch.empty(batch.rows, 1, batch.row_length, batch.row_length, dtype=dtype),
        "position_ids": torch.empty(shape, dtype=torch.long),
        "use_cache": False,
    }


def _see(vlm: VLM, images: torch.Tensor, blocks: int) -> torch.Tensor:
    """Visual tokens, with the tower's own activations where it trains."""
    features = vlm.encode_images(images).to(next(vlm.projector.parameters()).dtype)
    return visual_tokens(vlm, features[torch.arange(blocks) % len(features)])


def _read(decoder: nn.Module, name: str, layers: nn.ModuleList, inputs: dict[str, Any]) -> torch.Tensor:
    setattr(decoder, name, layers)
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
