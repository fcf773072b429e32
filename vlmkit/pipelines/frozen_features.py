"""Pooled features of a frozen tower (lit): whether they can be computed once, and the cache that keeps them."""

from __future__ import annotations

import torch

from vlmkit.config import PretrainRecipe
from vlmkit.data.feature_cache import FeatureCache, open_feature_cache
from vlmkit.data.sources import CaptionSource
from vlmkit.models.vision_tower import VisionTower
from vlmkit.pipelines.fit import PassProgress
from vlmkit.pipelines.plan import gigabytes
from vlmkit.training import distributed
from vlmkit.training.distributed import DistributedContext

_BYTES = 4
"""Of a number in the cache. A vector an image is small enough to be kept as it is computed: the losses of a run do not
depend on the cache."""


def cache_bytes(num_samples: int, width: int) -> int:
    """Size of a cache of ``num_samples`` images, each a vector of ``width`` numbers."""
    return num_samples * width * _BYTES


def why_uncached(recipe: PretrainRecipe, num_samples: int, width: int) -> str | None:
    """Why the tower of a lit recipe runs in every step, for the plan; None where its features are computed once.

    ``num_samples`` and ``width`` are of the training source and of the tower's pooled features.
    """
    train, size = recipe.train, cache_bytes(num_samples, width)
    if not recipe.feature_cache:
        return "feature_cache is off"
    if not recipe.augment.off:
        return "images are augmented; --set augment.crop_scale=[1,1] and no other augmentation lets them be cached"
    if size > recipe.cache_limit_gb * 1e9:
        return f"all of them would take {gigabytes(size)}, above cache_limit_gb={recipe.cache_limit_gb:g}"
    if train.total_steps(num_samples) * train.global_batch_size < num_samples:
        return "the run sees only a part of the images, and no image twice"
    return None


def open_frozen_features(
    recipe: PretrainRecipe,
    source: CaptionSource,
    tower: VisionTower,
    context: DistributedContext,
    progress: PassProgress | None,
) -> FeatureCache | None:
    """The features of ``source`` by ``tower``, which is on the context's device, computed first if need be; collective.

    None where the recipe trains no text tower on a frozen one, or cannot use them (``why_uncached``).
    """
    if recipe.objective.name != "lit" or why_uncached(recipe, len(source), tower.width) is not None:
        return None
    train = recipe.train

    @torch.no_grad()
    def pooled(pixels: torch.Tensor) -> torch.Tensor:
        with distributed.autocast(train, context):
            return tower.pooled(pixels.to(context.device))

    key = {"tower": tower.fingerprint(), "features": f"pooled, {train.precision}, {train.parallel}"}
    return context.together(
        lambda: open_feature_cache(
            source,
            pooled,
            tower.image_size,
            key,
            recipe.cache_limit_gb * 1e9,
            preprocessing="crop",
            dtype=torch.float32,
            num_workers=train.num_workers,
            progress=progress,
        )
    )
