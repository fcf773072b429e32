"""Images with their captions as training items, and as batches: pixels, labels, text ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from vlmkit.config import AugmentConfig
from vlmkit.contracts import Batch, Source
from vlmkit.data.batch_slots import stack_rows
from vlmkit.data.caption_text import repair
from vlmkit.data.caption_tokenizers import ClipTokenizer, LabelTokenizer
from vlmkit.data.corpus import read_captions
from vlmkit.data.draws import Draws
from vlmkit.data.feature_cache import FeatureCache
from vlmkit.data.images import EvalTransform, TrainTransform, decode_image
from vlmkit.data.samples import BadSample, CaptionSample, Image

PAD_LABEL = -1
"""Fills up rows of ``label_ids``; no token has this id."""


class CaptionItem(NamedTuple):
    """An image, uint8 [3, size, size], or its cached features, float [width], and its caption, which ``CaptionCollate``
    reads."""

    image: torch.Tensor
    caption: str


class CaptionLoader:
    """Reads sample ``(index, epoch)`` of a caption source and returns the function that makes an item of it (``Load``).

    The caption of a sample with several is drawn, like the augmentation, from (seed, index, epoch); without ``augment``
    the image is resized and centre-cropped. With ``features`` (a cache over the same source, of pooled features of
    images cropped like that) no image is read, nor augmented.

    Raises BadSample for a caption with nothing to read, as that function does for an image that cannot be used. What an
    objective makes of captions is not known here, so all objectives see the same samples.
    """

    def __init__(
        self,
        source: Source[CaptionSample],
        image_size: int,
        *,
        augment: AugmentConfig | None = None,
        features: FeatureCache | None = None,
        seed: int = 0,
    ) -> None:
        assert features is None or augment is None or augment.off
        self.source = source
        self.seed = seed
        self._features = features
        self._eval = EvalTransform(image_size)
        self._train = TrainTransform(image_size, augment) if augment else None

    def __call__(self, index: int, epoch: int) -> Callable[[], CaptionItem]:
        draws = Draws(self.seed, index, epoch)
        if self._features is not None:
            caption = _draw(read_captions(self.source, index), draws)
            return partial(CaptionItem, _single(self._features[index]), caption)
        sample = self.source[index]
        return partial(self._decode, sample.image, _draw(sample.captions, draws), draws)

    def _decode(self, image: Image, caption: str, draws: Draws) -> CaptionItem:
        decoded = decode_image(image)
        return CaptionItem(self._train(decoded, draws) if self._train else self._eval(decoded), caption)


def _draw(captions: Sequence[str], draws: Draws) -> str:
    caption = draws.pick(captions)
    if not repair(caption):
        raise BadSample(f"caption {caption!r} holds nothing to read")
    return caption


def _single(features: torch.Tensor | None) -> torch.Tensor:
    assert features is not None, "a caption sample has one image"
    return features[0]


class CaptionCollate:
    """Batches of items: ``pixel_values`` uint8 [B, 3, S, S], or in their place ``image_features`` float [B, width].

    With ``labels`` also ``label_ids`` int64 [B, L], filled up with PAD_LABEL, and with ``text`` also ``text_ids`` int64
    [B, context], both of the same captions. A caption whose tokens are all masked or unknown has no labels, and no
    loss.
    """

    def __init__(self, labels: LabelTokenizer | None = None, text: ClipTokenizer | None = None) -> None:
        self._labels = labels
        self._text = text

    def __call__(self, items: Sequence[CaptionItem]) -> Batch:
        images = [item.image for item in items]
        batch: Batch = {"image_features" if images[0].is_floating_point() else "pixel_values": stack_rows(images)}
        # All captions at once: one by one, between images, each would find the caches filled with pixels.
        captions = [item.caption for item in items]
        if self._labels:
            batch["label_ids"] = _padded(self._labels.bags(captions))
        if self._text:
            batch["text_ids"] = torch.from_numpy(self._text.encode(captions))
        return batch


def _padded(bags: Sequence[np.ndarray]) -> torch.Tensor:
    # At least one column: a batch without any label is a batch like others.
    rows = np.full((len(bags), max(1, *(bag.size for bag in bags))), PAD_LABEL, dtype=np.int64)
    for row, bag in zip(rows, bags, strict=True):
        row[: bag.size] = bag
    return torch.from_numpy(rows)
