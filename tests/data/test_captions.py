"""Captions as training items and batches."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from vlmkit.config import AugmentConfig
from vlmkit.data.caption_tokenizers import ClipTokenizer, LabelTokenizer
from vlmkit.data.captions import PAD_LABEL, CaptionCollate, CaptionItem, CaptionLoader
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


def test_items_are_functions_of_seed_index_and_epoch() -> None:
    source = Captions([CaptionSample(PICTURE, ("a red cat", "one blue dog", "many green birds"))] * 3)
    augment = AugmentConfig(crop_scale=(0.2, 0.9))

    def items(seed: int) -> list[tuple[bytes, str]]:
        load = CaptionLoader(source, 16, augment=augment, seed=seed)
        loaded = [load(index, epoch)() for index in range(3) for epoch in range(10)]
        return [(item.image.numpy().tobytes(), item.caption) for item in loaded]

    torch.manual_seed(0)
    first = items(seed=0)
    torch.manual_seed(1)
    assert items(seed=0) == first and len(first) == 30
    assert items(seed=1) != first
    assert len({image for image, _ in first}) > 25  # of a picture this small, two crops may agree by chance
    assert {caption for _, caption in first} == set(source[0].captions)


def test_labels_and_text_are_of_the_items_captions(clip: ClipTokenizer, labels: LabelTokenizer) -> None:
    source = Captions([CaptionSample(PICTURE, ("a red cat", "one blue dog &amp; more", "Ärger", "the"))])
    load = CaptionLoader(source, 16, augment=AugmentConfig(crop_scale=(0.2, 0.9)))
    items = [load(0, epoch)() for epoch in range(20)]
    batch = CaptionCollate(labels, clip)(items)
    assert {item.caption for item in items} == set(source[0].captions)
    assert torch.equal(batch["pixel_values"], torch.stack([item.image for item in items]))
    for item, bag, text in zip(items, batch["label_ids"], batch["text_ids"], strict=True):
        assert bag[bag != PAD_LABEL].tolist() == labels.bag(item.caption).tolist()
        assert text.tolist() == clip.encode([item.caption])[0].tolist()


def test_without_augmentation_images_are_those_of_evaluation() -> None:
    item = CaptionLoader(Captions([CaptionSample(PICTURE, ("a",))]), 16)(0, 3)()
    assert torch.equal(item.image, EvalTransform(16)(decode_image(PICTURE)))


class Unread(Captions):
    """Gives captions alone."""

    def captions_only(self, index: int) -> tuple[str, ...]:
        return super().__getitem__(index).captions

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("the image was read")


def test_cached_features_stand_in_for_images_with_the_same_captions() -> None:
    captions = tuple(f"thing number {number}" for number in range(5))
    samples = [CaptionSample(PICTURE, captions), CaptionSample(PICTURE, ("&nbsp;",)), CaptionSample(b"", captions)]
    source = Captions(samples)
    cache = open_feature_cache(
        source, lambda pixels: pixels.float().mean((2, 3)), 16, {}, 1e9, preprocessing="crop", dtype=torch.float32
    )
    cached, plain = CaptionLoader(Unread(samples), 16, features=cache), CaptionLoader(source, 16)
    items = [(cached(0, epoch)(), plain(0, epoch)()) for epoch in range(8)]
    assert all(mine.caption == theirs.caption for mine, theirs in items)
    batch = CaptionCollate()([mine for mine, _ in items])
    assert set(batch) == {"image_features"}
    expected = CaptionCollate()([theirs for _, theirs in items])["pixel_values"].float().mean((2, 3))
    assert torch.equal(batch["image_features"], expected)
    for index in (1, 2):
        for load in (cached, plain):
            with pytest.raises(BadSample):
                load(index, 0)()


def test_useless_samples_are_bad() -> None:
    source = Captions([CaptionSample(b"garbage", ("a cat",)), CaptionSample(PICTURE, ("\x00 &nbsp;",))])
    load = CaptionLoader(source, 16)
    with pytest.raises(BadImage):
        load(0, 0)()
    with pytest.raises(BadSample, match="nothing to read"):
        load(1, 0)()


def test_a_caption_that_masks_empty_is_an_item_without_labels(labels: LabelTokenizer) -> None:
    load = CaptionLoader(Captions([CaptionSample(PICTURE, ("the",))]), 16)
    batch = CaptionCollate(labels)([load(0, 0)(), load(0, 1)()])
    assert batch["label_ids"].tolist() == [[PAD_LABEL], [PAD_LABEL]]


def test_collate_pads_bags_and_stacks_images(clip: ClipTokenizer, labels: LabelTokenizer) -> None:
    images = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (1, 2)]
    captions = "the green cat", "cat"
    batch = pickle.loads(pickle.dumps(CaptionCollate(labels, clip)))(list(map(CaptionItem, images, captions)))
    (cat,), two = labels.bag("cat").tolist(), labels.bag("green cat").tolist()
    assert batch["label_ids"].tolist() == [two, [cat, PAD_LABEL]]
    assert batch["text_ids"].tolist() == clip.encode(captions).tolist()
    assert batch["label_ids"].dtype == batch["text_ids"].dtype == torch.int64
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"], torch.stack(images))


def test_collate_leaves_out_what_was_not_asked_for(clip: ClipTokenizer, labels: LabelTokenizer) -> None:
    items = [CaptionItem(torch.zeros(3, 4, 4, dtype=torch.uint8), "a cat")]
    assert set(CaptionCollate(labels)(items)) == {"pixel_values", "label_ids"}
    assert set(CaptionCollate(text=clip)(items)) == {"pixel_values", "text_ids"}
