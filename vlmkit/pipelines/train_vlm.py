"""VLM training: a tower and a language model in, a compressed-token VLM out, in stages align and finetune."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from huggingface_hub.utils import enable_progress_bars
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from vlmkit import registry
from vlmkit.config import DataConfig, TrainConfig, VLMRecipe
from vlmkit.contracts import IMAGE_TOKEN, Batch, Source
from vlmkit.data.conversation_loader import ConversationLoader
from vlmkit.data.conversations import ConversationEncoder
from vlmkit.data.feature_cache import FeatureCache, open_feature_cache
from vlmkit.data.loader import Stream, eval_batches
from vlmkit.data.packing import PackingCollate
from vlmkit.data.samples import ConversationSample
from vlmkit.data.sources import open_conversations
from vlmkit.errors import UserError
from vlmkit.models.adapters import add_adapters
from vlmkit.models.compressors import COMPRESSORS, shrunken_image_size
from vlmkit.models.llava_layout import llava_config, load_llava
from vlmkit.models.llm import load_llm
from vlmkit.models.towers import default_image_size, find_tower, find_tower_config, tower_from_config
from vlmkit.models.transformers_tower import is_hub_directory
from vlmkit.models.vlm import VLM, VLMConfig
from vlmkit.pipelines.fit import RunOutcome, fit_and_export, is_finished, prepare
from vlmkit.runs import RunDirectory, is_run, open_model
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training import distributed
from vlmkit.training.distributed import DistributedContext
from vlmkit.training.metrics import Progress
from vlmkit.training.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Stage = Literal["align", "finetune"]

# Bars for weights that load in a blink would break up our own display; those of hub downloads stay.
transformers_logging.disable_progress_bar()
enable_progress_bars()


def default_name(recipe: VLMRecipe) -> str:
    """Name of the run directory where the user gave none: what the run is."""
    llm = Path(recipe.llm.name).name.lower()
    return f"vlm-{llm}-{recipe.compressor.name}{'-'.join(map(str, recipe.compressor.counts))}"


def stage_settings(recipe: VLMRecipe, stage: Stage) -> tuple[TrainConfig, DataConfig]:
    """The training section and the data of a stage."""
    if stage == "align":
        return recipe.align, recipe.align_data or recipe.data
    return recipe.finetune, recipe.data


def train_vlm(recipe: VLMRecipe, out: Path, progress: Progress | None = None) -> RunOutcome:
    """Run a VLM recipe in ``out``, resuming what is there; the model ends in ``out/model`` (transformers layout).

    With stage "both" the align stage is a run of its own in ``out/align``, whose model the finetune stage starts from.
    """
    if recipe.stage != "both":
        return _run_stage(recipe, recipe.stage, out, recipe.init, progress)
    run = RunDirectory(out)
    run.check(recipe, _Sources.open(recipe.data).fingerprints)
    align = recipe.model_copy(update={"stage": "align"})
    _run_stage(align, "align", run.align_dir, recipe.init, progress)
    return _run_stage(recipe, "finetune", out, str(run.align_dir), progress)


def _run_stage(recipe: VLMRecipe, stage: Stage, out: Path, init: str | None, progress: Progress | None) -> RunOutcome:
    train, data = stage_settings(recipe, stage)
    context = distributed.setup(train.device)
    run = RunDirectory(out)
    sources = _Sources.open(data)
    context.on_main(lambda: run.check(recipe, sources.fingerprints))
    total_steps = train.total_steps(len(sources.train))
    if is_finished(run, total_steps):
        return RunOutcome(run, already_finished=True)
    # Models before the directory: what cannot be loaded must leave nothing behind.
    vlm, tokenizer = _build(recipe, stage, init, context)
    task = VLMTask(vlm, tokenizer, stage, recipe.train_tower)
    prepare(run, recipe, sources.fingerprints, context)
    distributed.place(task, train, context)  # first, so that features are cached of the tower as it is held
    feed = _Feed(recipe, train, task, context, progress)
    stream = feed.stream(sources.train)
    val_source = sources.val
    trainer = Trainer(
        train,
        recipe.seed,
        run,
        task,
        stream,
        total_steps=total_steps,
        val_batches=feed.held_out(val_source, stream.micro_batch_size) if val_source else None,
        max_bad_fraction=data.max_bad_fraction,
        progress=progress,
        description=stage,
    )
    return fit_and_export(trainer, run)


@dataclass(frozen=True)
class _Sources:
    train: Source[ConversationSample]
    val: Source[ConversationSample] | None

    @classmethod
    def open(cls, data: DataConfig) -> _Sources:
        return cls(open_conversations(data.train), open_conversations(data.val) if data.val else None)

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"train": self.train.fingerprint} | ({"val": self.val.fingerprint} if self.val else {})


def _build(
    recipe: VLMRecipe, stage: Stage, init: str | None, context: DistributedContext
) -> tuple[VLM, PreTrainedTokenizerBase]:
    """The model a stage starts from, set up as the recipe says."""
    vlm, tokenizer = _join(recipe, stage, context) if init is None else _continued(recipe, init)
    if recipe.llm.gradient_checkpointing:
        vlm.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if stage == "finetune":
        if recipe.vision_tower.gradient_checkpointing and recipe.train_tower:
            vlm.vision_tower.set_gradient_checkpointing(True)
        if recipe.lora is not None:
            add_adapters(vlm.language_model, recipe.lora, recipe.seed)
    return vlm, tokenizer


def _join(recipe: VLMRecipe, stage: Stage, context: DistributedContext) -> tuple[VLM, PreTrainedTokenizerBase]:
    """Parts joined afresh; a language model that stays frozen is never held in more than it trains with."""
    frozen = stage == "align" or recipe.lora is not None
    half = frozen and stage_settings(recipe, stage)[0].precision == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    llm, tokenizer = load_llm(recipe.llm, recipe.seed, dtype, context.device)
    name = recipe.vision_tower.name
    tower = find_tower(name, tower_image_size(name, recipe), recipe.seed)
    image_token_id = tokenizer.get_vocab()[IMAGE_TOKEN]
    # Before its features are cached: batch norms of a tower in training mode would look at the batch.
    return VLM.join(tower.eval(), llm, recipe.compressor, image_token_id, recipe.seed), tokenizer


def _continued(recipe: VLMRecipe, init: str) -> tuple[VLM, PreTrainedTokenizerBase]:
    """The model of an earlier VLM run or of a LLaVA checkpoint."""
    if not is_run(init):
        return load_llava(init, recipe.compressor, recipe.seed)
    vlm, tokenizer = load_vlm(init)
    have, want = vlm.config, recipe.compressor
    if (have.compressor, have.token_counts, have.query) != (want.name, [*want.counts], want.query):
        raise UserError(
            f"{init} has the compressor {have.compressor} with {_listed(have.token_counts)} tokens and the query "
            f"{have.query}, but {want.name} with {_listed(want.counts)} and {want.query} is asked for; start from a "
            "run with the same compressor, or leave --init out."
        )
    return vlm, tokenizer


def tower_image_size(name: str, recipe: VLMRecipe) -> int | None:
    """The image size to build the tower called ``name`` for; None: its own.

    It is the recipe's; where that says nothing and the language model is not embedded, ``default_image_size``; and a
    smaller one where that is how the compressor makes fewer tokens. Raises UserError for a count that no smaller image
    has.
    """
    llm, compressor = recipe.llm.name, recipe.compressor
    embedded = registry.is_llm(llm) and registry.llm(llm).embedded
    size = recipe.vision_tower.image_size or (None if embedded else default_image_size(name))
    if COMPRESSORS[compressor.name].placement != "image":
        return size
    with torch.device("meta"):
        full = tower_from_config(find_tower_config(name, size))
    return shrunken_image_size(compressor.counts, full.grid, full.patch_size)


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def load_vlm(run: str | Path) -> tuple[VLM, PreTrainedTokenizerBase]:
    """Model (float32, on the CPU) and tokenizer of a finished VLM run, or of a LLaVA-1.5 directory as it stands.

    Raises UserError if ``run`` is neither.
    """
    if not is_run(run) and is_hub_directory(str(run)):
        return load_llava(str(run), None, seed=0)
    directory = open_model(run, "train-vlm")
    vlm = VLM.from_pretrained(directory, dtype=torch.float32)
    return vlm, AutoTokenizer.from_pretrained(directory, local_files_only=True)


def initial_config(recipe: VLMRecipe) -> VLMConfig | None:
    """The configuration of the model that ``recipe.init`` gives, no weights read; None where parts are joined afresh.

    Raises UserError as loading it would, for what a configuration can tell.
    """
    if recipe.init is None:
        return None
    if is_run(recipe.init):
        return VLMConfig.from_pretrained(open_model(recipe.init, "train-vlm"), local_files_only=True)
    return llava_config(recipe.init, recipe.compressor)


class _Feed:
    """Turns conversation sources into packed batches for one model: encoded, with cached features where allowed."""

    def __init__(
        self,
        recipe: VLMRecipe,
        train: TrainConfig,
        task: VLMTask,
        context: DistributedContext,
        progress: Progress | None,
    ) -> None:
        vlm, tokenizer = task.model, task.tokenizer
        self._recipe, self._train, self._vlm, self._context, self._progress = recipe, train, vlm, context, progress
        tokens, conditioned = vlm.config.num_visual_tokens, vlm.compressor.conditioned
        self._encoder = ConversationEncoder(tokenizer, tokens, recipe.max_length, conditioned)
        self._collate = PackingCollate(recipe.max_length, tokenizer.pad_token_id)
        self._caches = recipe.feature_cache and not task.train_tower
        if recipe.feature_cache and task.train_tower and context.is_main:
            logger.warning("The vision tower trains, so its features change with every step: no feature cache is used.")
        self._tower = vlm.vision_tower.fingerprint() if self._caches else ""

    def stream(self, source: Source[ConversationSample]) -> Stream:
        """Shuffled training batches."""
        return Stream(
            self._load(source),
            source,
            self._collate,
            global_batch_size=self._train.global_batch_size,
            micro_batch_size=self._train.micro_batch_size,
            rank=self._context.rank,
            world_size=self._context.world_size,
            seed=self._recipe.seed,
            num_workers=self._train.num_workers,
        )

    def held_out(self, source: Source[ConversationSample], batch_size: int) -> _HeldOut:
        """Batches of the first samples of the held-out source."""
        num_samples = min(len(source), self._train.eval_samples)
        return _HeldOut(self._load(source), num_samples, batch_size, self._collate, self._train, self._context)

    def _load(self, source: Source[ConversationSample]) -> ConversationLoader:
        cache = self._cache(source) if self._caches else None
        return ConversationLoader(source, self._encoder, self._vlm.vision_tower.image_size, cache)

    def _cache(self, source: Source[ConversationSample]) -> FeatureCache | None:
        progress = self._progress if self._context.is_main else None
        if progress:
            progress.start(len(source), 0, "features")
        try:
            return open_feature_cache(
                source,
                self._features,
                self._vlm.vision_tower.image_size,
                {"tower": self._tower, "features": self._vlm.compressor.cached_content},
                self._recipe.cache_limit_gb * 1e9,
                num_workers=self._train.num_workers,
                progress=(lambda done, total: progress.update(done, {})) if progress else None,
            )
        finally:
            if progress:
                progress.finish()

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the tower will give in training: of weights held in bf16, under the autocast they need."""
        device, half = self._context.device, self._train.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return self._vlm.cacheable_features(pixels.to(device))


@dataclass(frozen=True)
class _HeldOut:
    load: ConversationLoader
    num_samples: int
    batch_size: int
    collate: PackingCollate
    train: TrainConfig
    context: DistributedContext

    def __call__(self) -> Iterator[Batch]:
        return eval_batches(
            self.load,
            self.num_samples,
            self.batch_size,
            self.collate,
            num_workers=self.train.num_workers,
            rank=self.context.rank,
            world_size=self.context.world_size,
        )
