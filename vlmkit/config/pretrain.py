"""The recipe of ``vlmkit pretrain-superclass``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vlmkit.config.sections import DataConfig, Fraction, OptimConfig, Positive, Section, TowerConfig, TrainConfig


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
