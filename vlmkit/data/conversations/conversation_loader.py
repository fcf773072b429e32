"""From an index to a packable item: read, encode, and fetch pixels or cached features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vlmkit.contracts import Source
from vlmkit.data.conversations.conversations import ConversationEncoder, EncodedSequence
from vlmkit.data.conversations.packing import ConversationItem
from vlmkit.data.feature_cache import FeatureCache
from vlmkit.data.images import PadTransform, decode_image
from vlmkit.data.order import stable_hash
from vlmkit.data.samples import ConversationSample

MEMORY_SAMPLES = 20_000
"""Encoded samples kept by a process, a few kilobytes each (an elastic model's once for each of its counts)."""


@dataclass(frozen=True)
class TokenCounts:
    """Which of a model's token counts a sample is trained with: one drawn for it, or all of them.

    "sampled" draws evenly, from (seed, index, epoch) alone, so that workers, ranks and resumption do not matter
    (MQT, arXiv 2405.19315); "all" takes every count, whose losses the step averages (M3, arXiv 2405.17430).
    """

    counts: tuple[int, ...]
    elastic: Literal["sampled", "all"] = "sampled"
    seed: int = 0

    def of(self, index: int, epoch: int) -> tuple[int, ...]:
        """The counts of a sample in an epoch."""
        if self.elastic == "all":
            return self.counts
        return (self.counts[stable_hash(self.seed, index, epoch) % len(self.counts)],)


class ConversationLoader:
    """``load(index, epoch)`` of a loader over conversations: encoded sequences with their images.

    With ``features`` (a cache over the same source) no image is read, and encoded samples are kept for later epochs;
    without, images are decoded, padded to squares and resized to ``image_size``. ``token_counts`` chooses among the
    counts of an elastic model (default: the encoder's). Raises BadSample where an image is unreadable and UserError
    where a sample cannot be trained on.
    """

    def __init__(
        self,
        source: Source[ConversationSample],
        encoder: ConversationEncoder,
        image_size: int,
        features: FeatureCache | None = None,
        token_counts: TokenCounts | None = None,
    ) -> None:
        self._source = source
        self._token_counts = token_counts or TokenCounts((encoder.num_visual_tokens,))
        self._encoders = {count: encoder.at(count) for count in self._token_counts.counts}
        self._transform = PadTransform(image_size)
        self._features = features
        self._encoded: dict[tuple[int, tuple[int, ...]], list[EncodedSequence]] = {}

    def __call__(self, index: int, epoch: int) -> ConversationItem:
        counts = self._token_counts.of(index, epoch)
        if self._features is not None:
            images = self._features[index]
            if (index, counts) in self._encoded:
                return ConversationItem(self._encoded[index, counts], images)
            sequences = self._encode(self._source[index], counts)
            if len(self._encoded) < MEMORY_SAMPLES:
                self._encoded[index, counts] = sequences
            return ConversationItem(sequences, images)
        sample = self._source[index]
        pixels = [self._transform(decode_image(image)) for image in sample.read_images()]
        return ConversationItem(self._encode(sample, counts), torch.stack(pixels) if pixels else None)

    def _encode(self, sample: ConversationSample, counts: tuple[int, ...]) -> list[EncodedSequence]:
        return [sequence for count in counts for sequence in self._encoders[count].encode(sample)]
