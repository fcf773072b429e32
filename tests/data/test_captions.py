"""The caption tokenizer against open_clip's own, and captions as training items."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from vlmkit.config import AugmentConfig
from vlmkit.data.captions import PAD_LABEL, CaptionLoader, CaptionTokenizer, collate_captions
from vlmkit.data.images import BadImage, EvalTransform, decode_image
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.data.sources import open_captions
from vlmkit.errors import UserError

AWKWARD = [
    "",
    "   ",
    "A photo of a cat",
    "A  Photo\n\tof\u00a0a\u3000CAT",
    "it's what they're saying, I'll say; don't we've I'd",
    "ünïcödé naïve café — “quotes” … ﬁne ½ ² ①",
    "cafe\u0301 and caf&#233; and e&#769;",
    "schÃ¶n mojibake â€™ here",
    "東京タワー 写真 한국어 تصویر कुत्ता 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "tom &amp; jerry &amp;lt;b&amp;gt; &quot;x&quot;",
    "12345 6.78e-9 3/10 $5.00",
    "!!! ??? -- ... <html> </w> @user #tag",
    "👍🏽 🇩🇪 👨‍👩‍👧",
    "İstanbul ΣΑΣ STRASSE ſ 'ſ",
    "zero\u200bwidth soft\u00adhyphen \ufeffbom \x00null \x1cseparator",
    "<end_of_text> and <start_of_text>",
    "word " * 200,
    "supercalifragilisticexpialidocious" * 10,
]


def _random_texts(count: int) -> list[str]:
    """Texts over blocks of scripts, punctuation and spaces that tokenizers stumble on."""
    rng = np.random.default_rng(0)
    blocks = [(32, 127), (0xA0, 0x250), (0x370, 0x400), (0x400, 0x460), (0x4E00, 0x4F00), (0x3040, 0x3100)]
    blocks += [(0x600, 0x650), (0x2000, 0x2070), (0x20A0, 0x20C0), (0x1F600, 0x1F640), (0xAC00, 0xAD00)]
    texts = []
    for _ in range(count):
        low, high = blocks[rng.integers(len(blocks))]
        letters = [chr(code) for code in rng.integers(low, high, rng.integers(1, 40))]
        spaces = rng.random(len(letters)) < 0.2
        texts.append("".join(" " if space else letter for letter, space in zip(letters, spaces, strict=True)))
    return texts


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer()


@pytest.fixture(scope="module")
def peer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def assert_equal_ids(texts: list[str], tokenizer: CaptionTokenizer, peer: Any) -> None:
    ours, theirs = tokenizer.encode(texts), peer(texts, tokenizer.context_length).numpy()
    wrong = [text for text, a, b in zip(texts, ours, theirs, strict=True) if (a != b).any()]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("context_length", [77, 16])
def test_equals_open_clip_on_awkward_and_random_texts(peer: Any, context_length: int) -> None:
    assert_equal_ids(AWKWARD + _random_texts(2000), CaptionTokenizer(context_length), peer)


def test_equals_open_clip_on_real_captions(tokenizer: CaptionTokenizer, peer: Any, shared_data: Path) -> None:
    source = open_captions(f"wds:{shared_data}/captions/train-*.tar")
    texts = [caption for index in range(len(source)) for caption in source[index].captions]
    assert len(texts) == 1379
    assert_equal_ids(texts, tokenizer, peer)


def test_vocabulary(tokenizer: CaptionTokenizer, peer: Any) -> None:
    assert tokenizer.vocab_size == peer.vocab_size == 49408
    assert tokenizer.special_ids == {peer.sot_token_id, peer.eot_token_id}


def test_bag_holds_distinct_tokens_of_the_window(peer: Any) -> None:
    tokenizer = CaptionTokenizer(context_length=8)
    text = "a cat! and a dog! and then something far behind"
    window = peer(text, 8)[0].tolist()[1:-1]
    bag = tokenizer.bag(text)
    assert bag.dtype == np.int64
    assert set(bag.tolist()) == set(window)
    assert (np.diff(bag) > 0).all()
    assert peer.encoder["!</w>"] in bag
    assert 0 in tokenizer.bag("!!x!") or peer.encoder["!!</w>"] in tokenizer.bag("!!x!")  # id 0 is a token, no padding
    assert tokenizer.bag(" ").size == 0


def test_saved_tokenizer_loads_in_transformers(tokenizer: CaptionTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["A photo  of a CAT, isn't it?", "naïve café 東京", "word " * 200]
    for text, row in zip(texts, tokenizer.encode(texts), strict=True):
        ids = loaded(text, truncation=True).input_ids
        assert ids == row[: len(ids)].tolist()
        assert not row[len(ids) :].any()
    assert loaded.decode(loaded("a photo of a cat").input_ids, skip_special_tokens=True).strip() == "a photo of a cat"


def test_tokenizer_pickles(tokenizer: CaptionTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert (copy.encode(AWKWARD) == tokenizer.encode(AWKWARD)).all()


def test_context_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="leaves no room"):
        CaptionTokenizer(2)


@pytest.mark.slow
def test_open_clip_is_not_imported() -> None:
    code = (
        "import sys; from vlmkit.data.captions import CaptionTokenizer; CaptionTokenizer();"
        "sys.exit('open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


class Captions(list[CaptionSample]):
    fingerprint = "captions"


def test_items_are_functions_of_seed_index_and_epoch(tokenizer: CaptionTokenizer) -> None:
    source = Captions([CaptionSample(PICTURE, ("a red cat", "one blue dog", "many green birds"))] * 3)
    augment = AugmentConfig(crop_scale=(0.2, 0.9))

    def items(seed: int) -> list[tuple[bytes, bytes]]:
        load = CaptionLoader(source, tokenizer, 16, augment, seed)
        loaded = [load(index, epoch) for index in range(3) for epoch in range(10)]
        return [(image.numpy().tobytes(), bag.tobytes()) for image, bag in loaded]

    torch.manual_seed(0)
    first = items(seed=0)
    torch.manual_seed(1)
    assert items(seed=0) == first
    assert items(seed=1) != first
    assert len({image for image, _ in first}) > 25  # of a picture this small, two crops may agree by chance
    assert {bag for _, bag in first} == {tokenizer.bag(text).tobytes() for text in source[0].captions}


def test_without_augmentation_images_are_those_of_evaluation(tokenizer: CaptionTokenizer) -> None:
    image, _ = CaptionLoader(Captions([CaptionSample(PICTURE, ("a",))]), tokenizer, 16)(0, 3)
    assert torch.equal(image, EvalTransform(16)(decode_image(PICTURE)))


def test_useless_samples_are_bad(tokenizer: CaptionTokenizer) -> None:
    source = Captions([CaptionSample(b"garbage", ("a cat",)), CaptionSample(PICTURE, ("\x00",))])
    load = CaptionLoader(source, tokenizer, 16)
    with pytest.raises(BadImage):
        load(0, 0)
    with pytest.raises(BadSample, match="no tokens"):
        load(1, 0)


def test_collate_pads_bags() -> None:
    images = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (1, 2)]
    batch = collate_captions([(images[0], np.array([0, 5, 9])), (images[1], np.array([7]))])
    assert batch["label_ids"].tolist() == [[0, 5, 9], [7, PAD_LABEL, PAD_LABEL]]
    assert batch["label_ids"].dtype == torch.int64
    assert batch["pixel_values"].dtype == torch.uint8
    assert torch.equal(batch["pixel_values"], torch.stack(images))
