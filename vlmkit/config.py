"""The typed recipe tree: every setting of every command, with its default, unit and meaning. No torch.

Reading, overriding and comparing recipes is in :mod:`vlmkit.recipe`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vlmkit import registry
from vlmkit.errors import UserError

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


class TextTowerConfig(Section):
    """The text transformer of the contrastive objectives, in the shape open_clip gives it; null: from the tower."""

    width: Positive | None = Field(None, description="Width of the text transformer.")
    layers: Positive | None = Field(None, description="Blocks of the text transformer.")
    heads: Positive | None = Field(None, description="Attention heads of a block.")
    embed_dim: Positive | None = Field(None, description="Width of the space that images and texts share.")


class ObjectiveConfig(Section):
    """What pretraining optimises. All objectives share data order, augmentation, tower and loop."""

    name: Literal["superclass", "clip", "siglip", "superclip", "lit"] = Field(
        "superclass",
        description="superclass: classify into caption tokens; clip, siglip: match captions; superclip: both; "
        "lit: match captions with the tower frozen.",
    )
    loss: Literal["softmax", "bce", "asl", "soft_margin", "two_way"] = Field(
        "softmax", description="Classification loss of superclass and superclip."
    )
    class_weight: float = Field(1.0, ge=0, description="Weight of the classification loss in superclip.")
    contrastive_weight: float = Field(1.0, ge=0, description="Weight of the contrastive loss in superclip.")
    text: TextTowerConfig = TextTowerConfig()

    @model_validator(mode="after")
    def _something_to_learn(self) -> ObjectiveConfig:
        if self.name == "superclip" and not (self.class_weight or self.contrastive_weight):
            raise ValueError("superclip with class_weight 0 and contrastive_weight 0 learns nothing; raise one of them")
        return self


class AugmentConfig(Section):
    """Training-time image augmentation, drawn from (seed, index, epoch)."""

    crop_scale: tuple[float, float] = Field(
        (0.9, 1.0), description="Area range of the random resized crop; [1, 1]: off."
    )
    flip: Fraction = Field(0.0, description="Probability of a horizontal flip (0 where captions name left and right).")
    color_jitter: tuple[float, float, float, float] | None = Field(
        None, description="Strength of brightness, contrast, saturation and hue jitter; null: off."
    )
    color_jitter_prob: Fraction = Field(0.8, description="Probability of the color jitter, where it is on.")
    grayscale_prob: Fraction = Field(0.0, description="Probability of turning an image gray.")

    @property
    def off(self) -> bool:
        """Whether every image looks the same each time."""
        jitters = self.color_jitter is not None and self.color_jitter_prob > 0
        return self.crop_scale == (1.0, 1.0) and not (self.flip or jitters or self.grayscale_prob)


class DataConfig(Section):
    """Where samples come from. A source is written KIND:WHERE, e.g. miniworld:train, wds:shards/*.tar, llava:a.json."""

    train: str | dict[str, Annotated[float, Field(gt=0)]] = Field(
        "miniworld:train?scenes=16000", description="Training source; or a mixture: {SOURCE: weight, ...}."
    )
    val: str | None = Field("miniworld:val", description="Held-out source; null: none.")
    max_bad_fraction: Fraction = Field(0.01, description="Refuse to go on when more of the samples cannot be read.")


class LabelConfig(Section):
    """Captions as bags of tokens, and their weights (SuperClass, section 3)."""

    tokenizer: str = Field(
        "clip", description="clip; word: the corpus's own words; or a tokenizers file: PATH or hub id (wordpiece, ...)."
    )
    vocab_size: Positive = Field(40_000, description="Most frequent words kept by the word tokenizer.")
    context_length: Positive = Field(77, description="Caption tokens read, special ids included.")
    mask_special_ids: bool = Field(
        True,
        description="Leave start, end, padding and unknown ids out of the labels, which the reference code does not; "
        "false: labels hold what the tokenizer adds or cannot name, and of clip also the padding id 0 (the token `!`) "
        "where the caption is shorter than the context, as there.",
    )
    mask_stop_words: bool = Field(False, description="Leave common English function words out of the labels.")
    min_captions: int = Field(0, ge=0, description="Leave tokens of fewer captions of the corpus out of the labels.")
    idf: Literal["running", "corpus", "none"] = Field(
        "running", description="Inverse document frequency: counted as data pass, counted ahead, or not used."
    )
    idf_formula: Literal["code", "paper"] = Field(
        "code", description="log((N + 1) / (df + 1)) as in the reference code, or log(N / (df + 1)) as printed."
    )
    idf_frozen_after: Positive | None = Field(
        None, description="Samples after which running counts no longer change; null: never."
    )

    @model_validator(mode="after")
    def _only_running_counts_freeze(self) -> LabelConfig:
        if self.idf_frozen_after is not None and self.idf != "running":
            raise ValueError(
                f"idf_frozen_after is for idf running, whose counts change; leave it out where idf is {self.idf}"
            )
        return self


class PretrainRecipe(Section):
    """``vlmkit pretrain-superclass``: captions in, a vision tower out."""

    command: Literal["pretrain-superclass"] = "pretrain-superclass"
    seed: int = 0
    objective: ObjectiveConfig = ObjectiveConfig()
    tower: TowerConfig = TowerConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    labels: LabelConfig = LabelConfig()
    feature_cache: bool = Field(
        True,
        description="Run a frozen tower (lit) once, where augmentation is off, and keep its features on disk.",
    )
    cache_limit_gb: float = Field(20.0, gt=0, description="No feature cache is written above this size.")
    train: TrainConfig = TrainConfig(
        samples=48_000,
        global_batch_size=32,
        optim=OptimConfig(lr=1.6e-3, eps=1e-8, weight_decay=0.02),
    )

    @model_validator(mode="after")
    def _samples_are_the_measure(self) -> PretrainRecipe:
        if self.train.micro_batch_tokens:
            raise ValueError("train.micro_batch_tokens is for conversations; use train.micro_batch_size")
        return self


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

    query: Literal["llm", "embed_mean", "none"] = Field(
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


class SweepRecipe(Section):
    """``vlmkit sweep``: one VLM recipe, and lists whose product becomes its runs."""

    command: Literal["sweep"] = "sweep"
    base: VLMRecipe = VLMRecipe()
    llms: list[str] = Field(min_length=1, description="Language models, by name.")
    tokens: list[Positive | list[Positive]] = Field(
        min_length=1, description="Visual token counts; a list among them is one elastic run."
    )
    compressors: list[str] = Field(["avgpool"], min_length=1, description="Compressors, by name.")
    seeds: list[int] = Field([0], min_length=1, description="Seeds.")
    lr: dict[str, float] = Field(default_factory=dict, description="Peak rate by language model, where it must differ.")
    eval_samples: Positive | None = Field(None, description="Samples each run is evaluated on, at most; null: all.")


_ARM = re.compile(r"\w[\w .,+=()%-]*")


def at_equal_seconds(arm: str) -> str:
    """What a study calls the arm that runs ``arm`` once more, at equal seconds."""
    return f"{arm} at equal seconds"


def lit_on(arm: str) -> str:
    """What a study calls the arm that trains text towers on the towers of ``arm``."""
    return f"LiT on {arm}"


def arm_folder(arm: str) -> str:
    """What the names of the directories of an arm's runs begin with."""
    return arm.replace(" ", "-")


class StudyRecipe(Section):
    """``vlmkit study``: arms that differ from one pretraining recipe in a few keys, over seeds, evaluated alike."""

    command: Literal["study"] = "study"
    base: PretrainRecipe = PretrainRecipe()
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="Name of an arm -> {dotted key: value}, what it changes in the base recipe."
    )
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Seeds of every arm.")
    equal_seconds: dict[str, str] = Field(
        default_factory=dict,
        description="Arm -> reference arm: the arm runs once more, with the samples that the reference's time buys it.",
    )
    lit: list[str] = Field([], description="Arms whose towers, frozen, get a text tower afterwards: an arm more each.")
    tasks: list[str] = Field(
        ["linear_probe"], min_length=1, description="Evaluations of every tower, each where it fits the arm."
    )
    eval_samples: Positive | None = Field(None, description="Samples of an evaluation's sets, at most; null: all.")
    train_data: str | None = Field(None, description="Labelled images a probe is fitted on; null: the embedded world.")
    test_data: str | None = Field(None, description="Labelled images a probe is scored on; null: the embedded world.")

    @model_validator(mode="after")
    def _known_arms(self) -> StudyRecipe:
        named = {"equal_seconds": {*self.equal_seconds, *self.equal_seconds.values()}, "lit": {*self.lit}}
        for key, arms in named.items():
            if unknown := arms - self.arms.keys():
                raise ValueError(f"{key} names {', '.join(sorted(unknown))}, which is no arm")
        return self

    @model_validator(mode="after")
    def _arms_with_directories_of_their_own(self) -> StudyRecipe:
        taken: dict[str, str] = {}
        for arm in self.all_arms:
            if not _ARM.fullmatch(arm):
                raise ValueError(
                    f"the arm {arm!r} cannot name a directory; use letters, digits, spaces and any of _.,+=()%-"
                )
            # Case does not tell directories apart everywhere.
            if (other := taken.setdefault(arm_folder(arm).casefold(), arm)) != arm:
                raise ValueError(f"the arms {other!r} and {arm!r} would share their directories; rename one")
        return self

    @property
    def all_arms(self) -> list[str]:
        """The arms, those that run again at equal seconds, and those that train text towers."""
        return [*self.arms, *map(at_equal_seconds, self.equal_seconds), *map(lit_on, self.lit)]


RECIPES: dict[str, type[Section]] = {
    "pretrain-superclass": PretrainRecipe,
    "train-vlm": VLMRecipe,
    "sweep": SweepRecipe,
    "study": StudyRecipe,
}
"""The recipe of each command that takes one."""
