"""Memory of a training step on each device: exact for weights, gradients and optimizer, estimated for activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from vlmkit.config import LLMConfig, TrainConfig, VLMRecipe
from vlmkit.models.attention import FLEX, chosen_attention
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.plans.plan_flops import MeanSample, layers_of, visual_tokens
from vlmkit.tasks.vlm import VLMTask

_FOUR_BIT_BYTES = 0.516
"""Of a weight in nf4 with double quantization: half a byte, and its share of the scales (arXiv 2305.14314)."""
_LOGIT_BYTES = 12
"""At their peak, in the backward pass, for each logit: its log-probability and the gradients of both, in float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    loading: int
    """The whole model on its device, before it is sharded."""
    weights: int
    gradients: int
    accumulated: int
    """Gradients that are there before a backward pass: of a step's earlier passes, or in the buckets of DDP."""
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
        """At the peak: gradients come as activations go, so those of a single pass never meet them all."""
        before = self.weights + self.accumulated + self.optimizer
        return max(self.state, before + self.gathered + self.activations + self.logits)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one device."""

    images: int
    blocks: int
    rows: int
    row_length: int
    """Places of a row, padding included."""
    labels: int
    passes: int = 1
    """Passes of a step."""

    @classmethod
    def of(cls, sample: MeanSample, train: TrainConfig, max_length: int, world_size: int) -> MicroBatch:
        """Average samples, packed: ``train.micro_batch_size`` of them, or ``train.micro_batch_tokens`` places."""
        share = train.global_batch_size // world_size
        samples: float = min(train.micro_batch_size or share, share)
        length = sample.tokens / sample.sequences
        together = min(max(1, int(max_length / length)), math.ceil(samples * sample.sequences))
        row_length = min(math.ceil(together * length), max_length)
        rows = math.ceil(samples * sample.sequences / together)
        if train.micro_batch_tokens and rows * row_length > train.micro_batch_tokens:
            rows = max(1, train.micro_batch_tokens // row_length)
            samples = rows * together / sample.sequences
        return cls(
            images=math.ceil(samples * sample.images),
            blocks=math.ceil(samples * sample.blocks),
            rows=rows,
            row_length=row_length,
            labels=math.ceil(samples * sample.labels),
            passes=math.ceil(share / samples),
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
    standing = batch.passes > 1 or (train.parallel == "ddp" and world_size > 1)
    vocabulary = task.model.get_output_embeddings().get_parameter("weight").shape[0]
    return Memory(
        loading=sum(p.nbytes for p in parameters) if shards > 1 else 0,
        weights=sum(held.values()),
        gradients=trained_bytes,
        accumulated=trained_bytes if standing else 0,
        optimizer=2 * trained_bytes,
        gathered=_gathered(task, train, trained, recompute),
        logits=batch.labels * vocabulary * _LOGIT_BYTES,
        activations=_activations(task.model, train, batch, recipe.llm),
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


def _activations(vlm: VLM, train: TrainConfig, batch: MicroBatch, llm: LLMConfig) -> int:
    """Bytes that autograd would keep, found by running one and two layers on tensors without numbers.

    They run by sdpa, which keeps what flex attention keeps and the mask [R, 1, T, T].
    """
    on_gpu = train.device == "cuda" or (train.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu or llm.attention == "flex" else "cpu")
    flex = chosen_attention(vlm.language_model, llm.attention, device) == FLEX
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
        held = [*vlm.parameters(), *([inputs["attention_mask"]] if flex else [])]
        dropout = _FusedDropout() if on_gpu else nullcontext()
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext(), dropout:
            visual = _kept(lambda: _see(vlm, images, batch.blocks), held)
            one, two = (_kept(partial(_read, decoder, name, layers[:count], inputs), held) for count in (1, 2))
    if llm.gradient_checkpointing:
        return visual + one + len(layers) * embeds.nbytes
    return visual + one + (len(layers) - 1) * (two - one)


class _FusedDropout(TorchFunctionMode):
    """Dropout as a GPU computes it, whose mask is a byte for each number; on a CPU it is of the numbers' own type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return torch.native_dropout(args[0], kwargs["p"], kwargs["training"])[0]
        return func(*args, **kwargs)


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
    return visual_tokens(vlm, features[torch.arange(blocks) % len(features)], vlm.config.num_visual_tokens)


def _read(decoder: nn.Module, name: str, layers: nn.ModuleList, inputs: dict[str, Any]) -> torch.Tensor:
    setattr(decoder, name, layers)
    return decoder(**inputs).last_hidden_state


def _kept(run: Callable[[], torch.Tensor], held: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors that ``run`` saves for its backward pass, without those that are ``held`` anyway."""
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    own = {tensor.untyped_storage()._cdata for tensor in held}
    del output
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
