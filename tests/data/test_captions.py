"""Captions as training items and batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vlmkit.config import AugmentConfig
from vlmkit.data.caption_tokenizers import ClipTokenizer, LabelTokenizer
from vlmkit.data.captions import PAD_LABEL, CaptionItem, CaptionLoader, collate_captions
from vlmkit.data.feature_cache import open_feature_cache
from vlmkit.data.images import BadImage, EvalTransform, decode_image
from vlmkit.data.samples import BadSample, CaptionSample

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


class Captions(list[CaptionSample]):
    fingerprint = "captions"


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.fixture(scope="module")
def labels(clip: ClipTokenizer) -> LabelTokenizer:
    return LabelTokenizer(clip, clip.bag("the"))


def test_items_are_functions_of_seed_index_and_epoch(labels: LabelTokenizer) -> None:
    source = Captions([CaptionSample(PICTURE, ("a red cat", "one blue dog", "many green birds"))] * 3)
    augment = AugmentConfig(crop_scale=(0.2, 0.9))

    def items(seed: int) -> list[tuple[bytes, bytes]]:
        load = CaptionLoader(source, 16, labels=labels, augment=augment, seed=seed)
        loaded = [load(index, epoch) for index in range(3) for epoch in range(10)]
        return [(item.image.numpy().tobytes(), item.labels.tobytes()) for item in loaded if item.labels is not None]

    torch.manual_seed(0)
    first = items(seed=0)
    torch.manual_seed(1)
    assert items(seed=0) == first and len(first) == 30
    assert items(seed=1) != first
    assert len({image for image, _ in first}) > 25  # of a picture this small, two crops may agree by chance
    assert {bag for _, bag in first} == {labels.bag(text).tobytes() for text in source[0].captions}


def test_labels_and_text_are_of_one_caption_and_the_same_whatever_is_asked_for(
    clip: ClipTokenizer, labels: LabelTokenizer
) -> None:
    captions = tuple(f"{word} thing number {number}" for number, word in enumerate(("red", "green", "blue")))
    source = Captions([CaptionSample(PICTURE, captions)] * 4)
    augment = AugmentConfig(crop_scale=(0.2, 0.9))
    both = CaptionLoader(source, 16, labels=labels, text=clip, augment=augment)
    only_labels = CaptionLoader(source, 16, labels=labels, augment=augment)
    only_text = CaptionLoader(source, 16, text=clip, augment=augment)
    drawn = set()
    for key in ((index, epoch) for index in range(4) for epoch in range(4)):
        item = both(*key)
        assert item.labels is not None and item.text is not None
        caption = next(caption for caption in captions if (clip.encode([caption])[0] == item.text).all())
        assert (item.labels == labels.bag(caption)).all()
        drawn.add(caption)
        for other in (only_labels(*key), only_text(*key)):
            assert torch.equal(other.image, item.image)
        assert (only_labels(*key).labels == item.labels).all() and only_labels(*key).text is None
        assert (only_text(*key).text == item.text).all() and only_text(*key).labels is None
    assert drawn == set(captions)


def test_without_augmentation_images_are_those_of_evaluation(clip: ClipTokenizer) -> None:
    item = CaptionLoader(Captions([CaptionSample(PICTURE, ("a",))]), 16, text=clip)(0, 3)
    assert torch.equal(item.image, EvalTransform(16)(decode_image(PICTURE)))


class Unread(Captions):
    """Gives captions alone."""

    def captions_only(self, index: int) -> tuple[str, ...]:
        return super().__getitem__(index).captions

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("the image was read")


def test_cached_features_stand_in_for_images_with_the_same_captions(clip: ClipTokenizer) -> None:
    captions = tuple(f"thing number {number}" for number in range(5))
    samples = [CaptionSample(PICTURE, captions), CaptionSample(PICTURE, ("&nbsp;",)), CaptionSample(b"", captions)]
    source = Captions(samples)
    cache = open_feature_cache(
        source, lambda pixels: pixels.float().mean((2, 3)), 16, {}, 1e9, preprocessing="crop", dtype=torch.float32
    )
    cached, plain = CaptionLoader(Unread(samples), 16, text=clip, features=cache), CaptionLoader(source, 16, text=clip)
    items = [(cached(0, epoch), plain(0, epoch)) for epoch in range(8)]
    assert all((mine.text == theirs.text).all() for mine, theirs in items)  # type: ignore[union-attr]
    batch = collate_captions([mine for mine, _ in items])
    assert set(batch) == {"image_features", "text_ids"}
    expected = collate_captions([theirs for _, theirs in items])["pixel_values"].float().mean((2, 3))
    assert torch.equal(batch["image_features"], expected)
    for index in (1, 2):
        for load in (cached, plain):
            with pytest.raises(BadSample):
                load(index, 0)


@pytest.mark.parametrize("asked", ["labels", "text"])
def test_useless_samples_are_bad_for_every_objective(asked: str, clip: ClipTokenizer, labels: LabelTokenizer) -> None:
    source = Captions([CaptionSample(b"garbage", ("a cat",)), CaptionSample(PICTURE, ("\x00 &nbsp;",))])
    load = CaptionLoader(source, 16, **({"labels": labels} if asked == "labels" else {"text": clip}))
    with pytest.raises(BadImage):
        load(0, 0)
    with pytest.raises(BadSample, match="nothing to read"):
        load(1, 0)


def test_a_caption_that_masks_empty_is_an_item_without_labels(labels: LabelTokenizer) -> None:
    load = CaptionLoader(Captions([CaptionSample(PICTURE, ("the",))]), 16, labels=labels)
    batch = collate_captions([load(0, 0), load(0, 1)])
    assert batch["label_ids"].tolist() == [[PAD_LABEL], [PAD_LABEL]]


def test_collate_pads_bags_and_stacks_text() -> None:
    images = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (1, 2)]
    bags, texts = (np.array([0, 5, 9]), np.array([7])), np.arange(8).reshape(2, 4)
    batch = collate_captions([CaptionItem(*parts) for parts in zip(images, bags, texts, strict=True)])
    assert batch["label_ids"].tolist() == [[0, 5, 9], [7, PAD_LABEL, PAD_LABEL]]
    assert batch["label_ids"].dtype == batch["text_ids"].dtype == torch.int64
    assert batch["text_ids"].tolist() == texts.tolist()
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"], torch.stack(images))


def test_collate_leaves_out_what_was_not_asked_for() -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert set(collate_captions([CaptionItem(image, np.array([3]), None)])) == {"pixel_values", "label_ids"}
    assert set(collate_captions([CaptionItem(image, None, np.array([3]))])) == {"pixel_values", "text_ids"}
