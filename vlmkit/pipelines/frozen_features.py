"""Pooled features of a frozen tower (lit): whether they can be computed once, and the cache that keeps them."""

from __future__ import annotations

import torch

from vlmkit.config import PretrainRecipe
from vlmkit.data.feature_cache import FeatureCache, cache_bytes, open_feature_cache
from vlmkit.data.samples import CaptionSource
from vlmkit.models.vision_tower import VisionTower
from vlmkit.pipelines.fit import PassProgress
from vlmkit.pipelines.plans.plan import gigabytes
from vlmkit.training import distributed
from vlmkit.training.distributed import DistributedContext

_DTYPE = torch.float32
"""Of a number in the cache. A vector an image is small enough to be kept as it is computed: the losses of a run do not
depend on the cache."""


def features_bytes(source: CaptionSource, width: int) -> int:
    """Size of the cache of ``source``: for each image a vector of ``width`` numbers."""
    return cache_bytes(source, (width,), _DTYPE)


def why_uncached(recipe: PretrainRecipe, source: CaptionSource, width: int) -> str | None:
    """Why the tower of a lit recipe runs in every step, for the plan; None where its features are computed once.

    ``source`` is the training source, ``width`` that of the tower's pooled features.
    """
    train, size = recipe.train, features_bytes(source, width)
    if not recipe.feature_cache:
        return "feature_cache is off"
    if not recipe.augment.off:
        return "images are augmented; --set augment.crop_scale=[1,1] and no other augmentation lets them be cached"
    if size > recipe.cache_limit_gb * 1e9:
        return f"all of them would take {gigabytes(size)}, above cache_limit_gb={recipe.cache_limit_gb:g}"
    if train.total_steps(len(source)) * train.global_batch_size < len(source):
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
    if recipe.objective.name != "lit" or why_uncached(recipe, source, tower.width) is not None:
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
            dtype=_DTYPE,
            num_workers=train.num_workers,
            progress=progress,
        )
    )
