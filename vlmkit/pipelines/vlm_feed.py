"""What a VLM trains on: conversation sources as packed batches for one model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from vlmkit.config import TrainConfig, VLMRecipe
from vlmkit.contracts import Batch, Source
from vlmkit.data.conversations.conversation_loader import ConversationLoader, TokenCounts
from vlmkit.data.conversations.packing import PackingCollate
from vlmkit.data.feature_cache import FeatureCache, open_feature_cache
from vlmkit.data.loader import Collate, Stream, eval_batches
from vlmkit.data.samples import ConversationSample
from vlmkit.pipelines.vlm_models import encoder_of
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training.distributed import DistributedContext
from vlmkit.training.metrics import Progress

logger = logging.getLogger(__name__)


class VLMFeed:
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
        self._encoder = encoder_of(vlm, tokenizer, recipe.max_length)
        self._token_counts = TokenCounts(recipe.compressor.counts, recipe.compressor.elastic, recipe.seed)
        collate, limit = PackingCollate(recipe.max_length, tokenizer.pad_token_id), train.micro_batch_tokens
        self._collate: Collate = partial(collate.micro_batches, max_tokens=limit) if limit else collate
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
        size = self._vlm.vision_tower.image_size
        return ConversationLoader(source, self._encoder, size, cache, self._token_counts)

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
    collate: Collate
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
