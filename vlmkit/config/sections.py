"""Sections that several recipes share: the training loop, the tower, the data."""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_TOWER_RUN = "runs/superclass"
"""Where ``vlmkit pretrain-superclass`` leaves its backbone, and where ``vlmkit train-vlm`` looks for one."""

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all recipe sections: unknown keys and wrong types are errors, values are fixed once resolved."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def to_yaml(self) -> str:
        """The section as YAML, every key written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class OptimConfig(Section):
    """AdamW, its learning-rate schedule and clipping."""

    lr: float = Field(1e-3, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW betas.")
    eps: float = Field(1e-6, gt=0, description="AdamW epsilon.")
    weight_decay: float = Field(0.2, ge=0, description="Decoupled weight decay of matrices; norms and biases get none.")
    schedule: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="Shape after warm-up: cosine to the floor, warm-up/stable/decay, or constant."
    )
    warmup: float = Field(0.03, ge=0, description="Warm-up: steps if 1 or more, a fraction of all steps below 1.")
    decay_fraction: Fraction = Field(0.2, description="Last part of a wsd schedule, with a linear fall.")
    min_lr_ratio: Fraction = Field(0.0, description="Floor of the schedule as a fraction of the peak rate.")
    clip_norm: float | None = Field(1.0, gt=0, description="Global gradient-norm limit; null turns clipping off.")
    lr_multipliers: dict[str, float] = Field(
        default_factory=dict, description="Learning rate of a named part (projector, llm, ...) relative to lr."
    )


class CheckpointConfig(Section):
    """When the training state is saved and how many of the saved states are kept."""

    every_steps: Positive = Field(200, description="Optimizer steps between checkpoints; the last is always saved.")
    keep: Positive = Field(2, description="Number of newest checkpoints kept.")
    asynchronous: bool = Field(True, description="Write in the background while training goes on.")


class LogConfig(Section):
    """What is recorded along the way; nothing here changes the result."""

    every_steps: Positive = Field(10, description="Optimizer steps between lines of metrics.jsonl.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events (extra `track`).")


class TrainConfig(Section):
    """The training loop: length, batch, precision, parallelism, cadence. Exactly one of steps, samples, epochs."""

    steps: Positive | None = Field(None, description="Length in optimizer steps.")
    samples: Positive | None = Field(None, description="Length in samples seen.")
    epochs: float | None = Field(None, gt=0, description="Length in passes over the training data.")
    global_batch_size: Positive = Field(256, description="Samples of one optimizer step, over all ranks.")
    micro_batch_size: Positive | None = Field(
        None, description="Samples of one forward pass on one rank; null: the whole share of the rank."
    )
    micro_batch_tokens: Positive | None = Field(
        None,
        description="VLMs: places of one forward pass on one rank, at most, padding included; a rank's share of a step "
        "is packed into rows, and these into as many passes as that takes. null: no limit.",
    )
    optim: OptimConfig = OptimConfig()
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: fp32 master weights, bf16 compute; the frozen matrices of a VLM are held in bf16."
    )
    compile: bool = Field(False, description="torch.compile each transformer block (needs a C++ compiler).")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="How ranks share the model: replicas or shards.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one.")
    num_workers: int = Field(0, ge=0, description="Loader processes of each rank.")
    eval_every_steps: Positive | None = Field(None, description="Steps between held-out evaluations; null: at the end.")
    eval_samples: Positive = Field(2048, description="Held-out samples of one evaluation, at most.")
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        given = [name for name in ("steps", "samples", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of steps, samples, epochs (got {', '.join(given) or 'none'})")
        if self.micro_batch_size and self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.micro_batch_size and self.micro_batch_tokens:
            raise ValueError("micro_batch_size and micro_batch_tokens both say how large a forward pass is; give one")
        return self

    def total_steps(self, num_samples: int) -> int:
        """Optimizer steps of the run over a source of ``num_samples`` samples; at least one."""
        if self.steps is not None:
            return self.steps
        samples = self.samples if self.samples is not None else self.epochs * num_samples  # type: ignore[operator]
        return max(1, int(samples) // self.global_batch_size)


class TowerConfig(Section):
    """The vision tower: a registry name, or (where one is read) a run directory."""

    name: str = Field(
        "ViT-mini-8-64",
        description="Registry name, run directory, open_clip model name; for a VLM also a hub id or directory.",
    )
    image_size: Positive | None = Field(
        None,
        description="Input side in pixels; null: the tower's own, and for a published ViT of patch 14 or 16 beside a "
        "language model that is not embedded at least 336 or 384 (24 x 24 patches).",
    )
    pooling: Literal["avg", "tok", "map"] | None = Field(
        None,
        description="Mean of the patches, class token, or attention pooling; null: what the tower records, or avg.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute the blocks in the backward pass: less memory.")


class DataConfig(Section):
    """Where samples come from. A source is written KIND:WHERE, e.g. miniworld:train, wds:shards/*.tar, llava:a.json."""

    train: str | dict[str, Annotated[float, Field(gt=0)]] = Field(
        "miniworld:train?scenes=16000", description="Training source; or a mixture: {SOURCE: weight, ...}."
    )
    val: str | None = Field("miniworld:val", description="Held-out source; null: none.")
    max_bad_fraction: Fraction = Field(0.01, description="Refuse to go on when more of the samples cannot be read.")
