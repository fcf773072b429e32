"""From an index to a packable item: read, encode, and fetch pixels or cached features."""

from __future__ import annotations

import torch

from vlmkit.contracts import Source
from vlmkit.data.conversations import ConversationEncoder, EncodedSequence
from vlmkit.data.feature_cache import FeatureCache
from vlmkit.data.images import PadTransform, decode_image
from vlmkit.data.packing import ConversationItem
from vlmkit.data.samples import ConversationSample

MEMORY_SAMPLES = 20_000
"""Encoded samples kept by a process, a few kilobytes each."""


class ConversationLoader:
    """``load(index, epoch)`` of a loader over conversations: encoded sequences with their images.

    With ``features`` (a cache over the same source) no image is read, and encoded samples are kept for later epochs;
    without, images are decoded, padded to squares and resized to ``image_size``. Raises BadSample where an image is
    unreadable and UserError where a sample cannot be trained on.
    """

    def __init__(
        self,
        source: Source[ConversationSample],
        encoder: ConversationEncoder,
        image_size: int,
        features: FeatureCache | None = None,
    ) -> None:
        self._source = source
        self._encoder = encoder
        self._transform = PadTransform(image_size)
        self._features = features
        self._encoded: dict[int, list[EncodedSequence]] = {}

    def __call__(self, index: int, epoch: int) -> ConversationItem:
        if self._features is not None:
            images = self._features[index]
            if index in self._encoded:
                return ConversationItem(self._encoded[index], images)
            sequences = self._encoder.encode(self._source[index])
            if len(self._encoded) < MEMORY_SAMPLES:
                self._encoded[index] = sequences
            return ConversationItem(sequences, images)
        sample = self._source[index]
        pixels = [self._transform(decode_image(image)) for image in sample.read_images()]
        return ConversationItem(self._encoder.encode(sample), torch.stack(pixels) if pixels else None)
