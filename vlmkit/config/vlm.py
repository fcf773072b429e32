"""The recipe of ``vlmkit train-vlm``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vlmkit import registry
from vlmkit.config.sections import (
    DEFAULT_TOWER_RUN,
    DataConfig,
    Fraction,
    OptimConfig,
    Positive,
    Section,
    TowerConfig,
    TrainConfig,
)
from vlmkit.errors import UserError

Query = Literal["llm", "embed_mean", "none"]
"""What a compressor that sees the question is told of it."""


class LLMConfig(Section):
    """The language model: a registry name or alias, a hub id, or a local directory in hub layout."""

    name: str = Field("tiny", description="Registry name, alias such as 7b, hub id, local directory or VLM run.")
    weights: Literal["pretrained", "random"] = Field(
        "pretrained",
        description="random: the true shape with fresh weights, to measure with.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute the layers in the backward pass: less memory.")
    attention: Literal["auto", "sdpa", "flex"] = Field(
        "auto", description="How packed rows are attended to in training; auto: flex for large models on GPUs."
    )
    kernels: Literal["liger"] | None = Field(
        None, description="liger: fused norms, MLPs and rotary embeddings on NVIDIA GPUs (extra `gpu`)."
    )


class LoRAConfig(Section):
    """Low-rank adapters on every linear layer of the language model but its output head (extra `lora`)."""

    r: Positive = Field(128, description="Rank of the adapters.")
    alpha: float = Field(256, gt=0, description="Adapters are scaled by alpha / r.")
    dropout: Fraction = Field(0.05, description="Dropout ahead of the adapters.")
    quantize: Literal["nf4"] | None = Field(
        None, description="nf4: the frozen layers beneath are held in four bits (QLoRA; needs an NVIDIA GPU)."
    )


class CompressorConfig(Section):
    """How the patch grid becomes visual tokens."""

    name: str = Field("avgpool", description="Registry name of the compressor.")
    num_visual_tokens: Positive | Annotated[list[Positive], Field(min_length=1)] = Field(
        16, description="Visual tokens the language model sees; a list trains one model for all of them (elastic)."
    )
    elastic: Literal["sampled", "all"] = Field(
        "sampled",
        description="Several token counts: sampled trains each sample with one drawn for it (MQT, arXiv 2405.19315), "
        "all trains each with every one and averages (M3, arXiv 2405.17430).",
    )
    condition_on: Literal["first", "each"] = Field(
        "first",
        description="For a compressor that reads the question: a dialogue is one sequence whose visual tokens are for "
        "its first question, or each question becomes a sequence with visual tokens of its own.",
    )

    @field_validator("num_visual_tokens")
    @classmethod
    def _plain(cls, counts: int | list[int]) -> int | list[int]:
        """One way to write each choice: ascending, each once, a single count as a number."""
        if isinstance(counts, int):
            return counts
        ascending = sorted({*counts})
        return ascending if len(ascending) > 1 else ascending[0]

    query: Query = Field(
        "llm",
        description="What a compressor that sees the question is told of it: the language model's last hidden state, "
        "the mean of its input embeddings, or nothing.",
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            return registry.compressor(name).name
        except UserError as error:
            raise ValueError(str(error)) from error

    @property
    def counts(self) -> tuple[int, ...]:
        """All token counts, ascending; one where the model is not elastic."""
        counts = self.num_visual_tokens
        return (counts,) if isinstance(counts, int) else tuple(counts)


class VLMRecipe(Section):
    """``vlmkit train-vlm``: a vision tower and an LLM joined through a compressor, in stages align and finetune."""

    command: Literal["train-vlm"] = "train-vlm"
    seed: int = 0
    stage: Literal["align", "finetune", "both"] = Field(
        "both", description="Stages to run; both: first align, then finetune."
    )
    init: str | None = Field(
        None,
        description="Model to start from in place of llm and vision_tower: a VLM run, or a LLaVA-1.5 checkpoint.",
    )
    vision_tower: TowerConfig = TowerConfig(name=DEFAULT_TOWER_RUN)
    train_tower: bool = Field(
        False, description="Train the tower in stage finetune, at the rate of lr_multipliers.tower; needs no cache."
    )
    llm: LLMConfig = LLMConfig()
    lora: LoRAConfig | None = Field(
        None, description="Adapters in place of the language model's weights in stage finetune; null: full training."
    )
    compressor: CompressorConfig = CompressorConfig()
    data: DataConfig = DataConfig()
    align_data: DataConfig | None = Field(None, description="Data of the align stage; null: the same as data.")
    prompt_order: Literal["image_first", "text_first"] = Field(
        "image_first",
        description="Where an image stands that the text has no place for: before or after the first question. "
        "text_first lets a fixed question be read once for all images.",
    )
    max_length: Positive = Field(2048, description="Tokens of a packed row, visual tokens included.")
    feature_cache: bool = Field(True, description="Run the frozen tower once and keep its features on disk.")
    cache_limit_gb: float = Field(20.0, gt=0, description="No feature cache is written above this size.")
    # The stages of LLaVA-1.5, which QueCC keeps (published training scripts: rates, batches, one epoch each).
    align: TrainConfig = TrainConfig(
        epochs=1, global_batch_size=256, optim=OptimConfig(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    )
    finetune: TrainConfig = TrainConfig(
        epochs=1, global_batch_size=128, optim=OptimConfig(lr=2e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    )

    @model_validator(mode="after")
    def _four_bit_weights_are_not_sharded(self) -> VLMRecipe:
        if self.lora is not None and self.lora.quantize and self.finetune.parallel == "fsdp":
            raise ValueError(f"lora.quantize {self.lora.quantize} goes with finetune.parallel ddp, not fsdp")
        return self

    @model_validator(mode="after")
    def _a_row_fits_a_pass(self) -> VLMRecipe:
        for name in ("align", "finetune"):
            tokens = getattr(self, name).micro_batch_tokens
            if tokens and tokens < self.max_length:
                raise ValueError(
                    f"{name}.micro_batch_tokens {tokens} cannot hold a row of max_length {self.max_length}; "
                    "raise it or lower max_length"
                )
        return self


_FRESH = {"lr": 1.5e-3, "betas": (0.9, 0.98)}
EMBEDDED_VLM: dict[str, Any] = {
    "max_length": 512,
    "data": {"val": "miniworld:val?scenes=500"},
    "align": {"steps": 50, "global_batch_size": 16, "optim": _FRESH},
    "finetune": {"steps": 1000, "global_batch_size": 16, "optim": _FRESH},
}
"""What replaces VLMRecipe's defaults for an embedded language model, which starts from fresh weights and not from a
pretrained model's: high rates, short runs. Applied where no recipe file is given."""
