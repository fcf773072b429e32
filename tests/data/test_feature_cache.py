"""The feature cache: what it holds, when it is built again, and what it never leaves behind."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from vlmkit.data import feature_cache
from vlmkit.data.conversations.conversation_loader import ConversationLoader
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.feature_cache import FeatureCache, cache_bytes, cache_root, open_feature_cache
from vlmkit.data.images import EvalTransform, decode_image
from vlmkit.data.samples import BadSample, CaptionSample, ConversationSample, Turn
from vlmkit.data.sources.mixture import Mixture


class Memory:
    """Samples in memory: sample i has i % 3 images of constant colour; ``bad`` ones hold broken bytes."""

    def __init__(self, length: int = 10, fingerprint: str = "a", bad: tuple[int, ...] = ()) -> None:
        self.length, self.fingerprint, self.bad = length, fingerprint, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ConversationSample:
        images: tuple[np.ndarray | bytes, ...] = tuple(
            np.full((12, 12, 3), 10 * index + k, np.uint8) for k in range(index % 3)
        )
        if index in self.bad:
            images = (b"broken",)
        return ConversationSample(str(index), images, (Turn("what is it", "red"),))


def means(pixels: torch.Tensor) -> torch.Tensor:
    """[B, 2, 1]: the mean, and twice the mean."""
    mean = pixels.float().mean((1, 2, 3))
    return torch.stack([mean, 2 * mean], 1)[..., None]


def build(source: Memory, key: str = "k", limit: float = 1e9, batch_size: int = 4) -> FeatureCache | None:
    return open_feature_cache(source, means, 8, {"tower": key}, limit, batch_size=batch_size)


def folders() -> list[Path]:
    return [path for path in cache_root().iterdir() if path.is_dir()]


def test_every_sample_gets_the_features_of_its_images() -> None:
    cache = build(Memory())
    assert cache is not None and len(cache) == 10
    for copy in (cache, pickle.loads(pickle.dumps(cache))):
        for index in range(10):
            features = copy[index]
            if index % 3 == 0:
                assert features is None
            else:
                assert features is not None and features.dtype == torch.float16
                assert features[:, 0, 0].tolist() == [10 * index + k for k in range(index % 3)]
                torch.testing.assert_close(features[:, 1], 2 * features[:, 0])


def test_it_is_built_once_for_a_key_and_again_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    build(Memory())
    with monkeypatch.context() as patched:
        patched.setattr(feature_cache, "_build", lambda *args: pytest.fail("built again"))
        assert build(Memory()) is not None
    for other in (lambda: build(Memory(fingerprint="b")), lambda: build(Memory(), key="other")):
        before = len(folders())
        other()
        assert len(folders()) == before + 1


def test_above_the_limit_nothing_is_kept_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    size = cache_bytes(Memory(), (2, 1))
    with caplog.at_level(logging.WARNING):
        assert build(Memory(), limit=size - 1) is None
    assert "--cache-limit" in caplog.text and folders() == []
    cache = build(Memory(), limit=size)
    assert cache is not None and (cache.directory / feature_cache.FEATURES).stat().st_size == size
    assert build(Memory(), limit=size - 1) is None, "a cache that is there is held against the limit too"


def test_an_interrupted_build_leaves_nothing() -> None:
    def interrupted(pixels: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_feature_cache(Memory(), interrupted, 8, {}, 1e9)
    assert folders() == []


def test_of_two_that_want_it_at_once_one_builds() -> None:
    calls = []

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return means(pixels)

    found: list[FeatureCache | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(open_feature_cache(Memory(), counted, 8, {}, 1e9)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(calls) == 9 and len(folders()) == 1
    assert all(cache is not None and cache[1] is not None for cache in found)


def test_bad_images_stay_bad() -> None:
    cache = build(Memory(bad=(4,)))
    assert cache is not None and cache[5] is not None
    with pytest.raises(BadSample, match="sample 4"):
        cache[4]


def test_a_source_without_images_has_an_empty_cache() -> None:
    cache = build(Memory(length=1))
    assert cache is not None and cache[0] is None


class Pictures(list[CaptionSample]):
    fingerprint = "pictures"


def test_captions_keep_one_exact_vector_a_cropped_image() -> None:
    rng = np.random.default_rng(0)
    source = Pictures(CaptionSample(rng.integers(0, 256, (12, 20, 3), np.uint8), ("a",)) for _ in range(3))
    source.append(CaptionSample(b"broken", ("a",)))
    crop = EvalTransform(8)

    def vectors(pixels: torch.Tensor) -> torch.Tensor:
        return means(pixels)[..., 0] / 3

    cache = open_feature_cache(source, vectors, 8, {}, 1e9, preprocessing="crop", dtype=torch.float32)
    assert cache is not None
    for copy in (cache, pickle.loads(pickle.dumps(cache))):
        for index in range(3):
            features = copy[index]
            assert features is not None and features.dtype == torch.float32
            assert torch.equal(features, vectors(crop(decode_image(source[index].image))[None]))
        with pytest.raises(BadSample, match="sample 3"):
            copy[3]
    padded = open_feature_cache(source, vectors, 8, {}, 1e9, dtype=torch.float32)
    assert padded is not None and padded.directory != cache.directory
    assert open_feature_cache(source, vectors, 8, {}, 1e9, preprocessing="crop").directory != cache.directory  # type: ignore[union-attr]


def test_loader_gives_cached_features_or_pixels_with_the_same_text() -> None:
    from transformers import AutoTokenizer

    from vlmkit.data.tokenizer import DIRECTORY

    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(DIRECTORY), 2, 64)
    cached = ConversationLoader(Memory(), encoder, 8, build(Memory()))
    plain = ConversationLoader(Memory(), encoder, 8)
    for _ in range(2):
        features, pixels = cached(2, 0), plain(2, 0)
        assert features.sequences == pixels.sequences
        assert features.images is not None and pixels.images is not None
        assert pixels.images.dtype == torch.uint8 and pixels.images.shape == (2, 3, 8, 8)
        torch.testing.assert_close(features.images.float(), means(pixels.images))
    assert cached(0, 0).images is None and plain(0, 0).images is None


def test_with_cached_features_no_image_is_read() -> None:
    from transformers import AutoTokenizer

    from vlmkit.data.tokenizer import DIRECTORY

    def unreadable() -> bytes:
        raise AssertionError("the image was read")

    class Unread(Memory):
        def __getitem__(self, index: int) -> ConversationSample:
            sample = super().__getitem__(index)
            return dataclasses.replace(sample, images=(unreadable,) * len(sample.images))

    encoder = ConversationEncoder(AutoTokenizer.from_pretrained(DIRECTORY), 2, 64)
    assert ConversationLoader(Unread(), encoder, 8, build(Memory()))(2, 0).images is not None


def test_a_mixture_has_one_cache_for_all_weights() -> None:
    parts = [Memory(4), Memory(7, "b")]
    caches = [build(Mixture(parts, weights)) for weights in ([1, 1], [5, 1])]  # type: ignore[arg-type]
    assert len(folders()) == 1 and caches[0] is not None and len(caches[0]) == 11
    for index in range(11):
        alone = build(parts[index >= 4])
        assert alone is not None
        features, expected = caches[0][index], alone[index - 4 * (index >= 4)]
        assert (features is None) == (expected is None)
        assert features is None or expected is None or torch.equal(features, expected)
