"""Images with their captions as training items and batches: pixels, labels, text ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vlmkit.config import AugmentConfig
from vlmkit.contracts import Batch, Source
from vlmkit.data.caption_text import repair
from vlmkit.data.caption_tokenizers import ClipTokenizer, LabelTokenizer
from vlmkit.data.corpus import read_captions
from vlmkit.data.feature_cache import FeatureCache
from vlmkit.data.images import EvalTransform, TrainTransform, decode_image
from vlmkit.data.order import stable_hash
from vlmkit.data.samples import BadSample, CaptionSample

PAD_LABEL = -1
"""Fills up rows of ``label_ids``; no token has this id."""


class CaptionItem(NamedTuple):
    """An image, uint8 [3, size, size], or its cached features, float [width], and what is asked of its caption: the bag
    of its labels [L], its text ids."""

    image: torch.Tensor
    labels: np.ndarray | None
    text: np.ndarray | None


class CaptionLoader:
    """Loads item ``(index, epoch)`` of a caption source.

    The caption of a sample with several is drawn, like the augmentation, from (seed, index, epoch), and labels and text
    ids are both of that one; without ``augment`` the image is resized and centre-cropped. With ``features`` (a cache
    over the same source, of pooled features of images cropped like that) no image is read, nor augmented.

    Raises BadSample for an image that cannot be used or a caption with nothing to read, whatever the objective asks
    for, so that all objectives see the same samples. A caption whose tokens are all masked or unknown is no bad sample:
    its labels are empty, and it has no loss.
    """

    def __init__(
        self,
        source: Source[CaptionSample],
        image_size: int,
        *,
        labels: LabelTokenizer | None = None,
        text: ClipTokenizer | None = None,
        augment: AugmentConfig | None = None,
        features: FeatureCache | None = None,
        seed: int = 0,
    ) -> None:
        assert features is None or augment is None or augment.off
        self.source = source
        self.labels = labels
        self.text = text
        self.seed = seed
        self._features = features
        self._eval = EvalTransform(image_size)
        self._train = TrainTransform(image_size, augment) if augment else None

    def __call__(self, index: int, epoch: int) -> CaptionItem:
        generator = torch.Generator().manual_seed(stable_hash(self.seed, index, epoch))
        if self._features is not None:
            caption = _draw(read_captions(self.source, index), generator)
            image = _single(self._features[index])
        else:
            sample = self.source[index]
            caption = _draw(sample.captions, generator)
            decoded = decode_image(sample.image)
            image = self._train(decoded, generator) if self._train else self._eval(decoded)
        return CaptionItem(
            image,
            self.labels.bag(caption) if self.labels else None,
            self.text.encode([caption])[0] if self.text else None,
        )


def _draw(captions: Sequence[str], generator: torch.Generator) -> str:
    caption = captions[int(torch.randint(len(captions), (), generator=generator))]
    if not repair(caption):
        raise BadSample(f"caption {caption!r} holds nothing to read")
    return caption


def _single(features: torch.Tensor | None) -> torch.Tensor:
    assert features is not None, "a caption sample has one image"
    return features[0]


def collate_captions(items: Sequence[CaptionItem]) -> Batch:
    """``pixel_values`` uint8 [B, 3, S, S], or in their place ``image_features`` float [B, width]; ``label_ids`` int64
    [B, L], filled up with PAD_LABEL, and ``text_ids`` int64 [B, context] where the items hold labels and text."""
    images = torch.stack([item.image for item in items])
    batch: Batch = {"image_features" if images.is_floating_point() else "pixel_values": images}
    bags = [item.labels for item in items if item.labels is not None]
    texts = [item.text for item in items if item.text is not None]
    if bags:
        batch["label_ids"] = _padded(bags)
    if texts:
        batch["text_ids"] = torch.from_numpy(np.stack(texts))
    return batch


def _padded(bags: Sequence[np.ndarray]) -> torch.Tensor:
    # At least one column: a batch without any label is a batch like others.
    rows = torch.full((len(bags), max(1, *(bag.size for bag in bags))), PAD_LABEL, dtype=torch.int64)
    for row, bag in zip(rows, bags, strict=True):
        row[: bag.size] = torch.from_numpy(bag)
    return rows
