"""The pass over all captions of a source."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from vlmkit.data.caption_tokenizers import ClipTokenizer, FileTokenizer
from vlmkit.data.corpus import captions_at, count_corpus
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.errors import UserError

NAMES = ("red", "green", "blue", "cat", "dog", "bird", "house", "tree", "small", "large")


class Captions(list[CaptionSample]):
    def __init__(self, samples: list[tuple[str, ...]]) -> None:
        super().__init__(CaptionSample(b"", captions) for captions in samples)
        self.fingerprint = str(samples)


class WithGaps(Captions):
    """Every seventh sample is bad."""

    def __getitem__(self, index: Any) -> Any:
        if index % 7 == 3:
            raise BadSample("gone")
        return super().__getitem__(index)


class WithoutImages(WithGaps):
    def captions_only(self, index: int) -> tuple[str, ...]:
        return super().__getitem__(index).captions

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("an image was read")


def many_samples() -> list[tuple[str, ...]]:
    rng = np.random.default_rng(0)
    return [
        tuple(" ".join(rng.choice(NAMES, rng.integers(0, 12))) for _ in range(rng.integers(1, 4))) for _ in range(900)
    ]


@pytest.fixture
def tokenizer() -> FileTokenizer:
    words = Tokenizer(models.WordLevel({"?": 0, **{name: 1 + i for i, name in enumerate(NAMES)}}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return FileTokenizer(words, context_length=6)


@pytest.mark.parametrize("kind", [WithGaps, WithoutImages])
def test_counts_equal_a_plain_counter(kind: type[WithGaps], tokenizer: FileTokenizer, tmp_path: Path) -> None:
    samples = many_samples()
    containing: Counter[str] = Counter()
    num_captions = 0
    for index, captions in enumerate(samples):
        for caption in captions if index % 7 != 3 else ():
            containing.update(set(caption.split()[:6]))
            num_captions += bool(caption)
    heard: list[tuple[int, int]] = []
    counts = count_corpus(kind(samples), tokenizer, tmp_path, lambda *numbers: heard.append(numbers))
    assert num_captions > 1024, "more than one batch"
    assert counts.num_documents == num_captions
    assert counts.document_frequency.dtype == np.int64
    assert counts.document_frequency.tolist() == [0, *(containing[name] for name in NAMES)]
    assert len(heard) > 1 and heard[-1] == (900, 900) and heard == sorted(heard)


def test_counts_are_kept_and_found_again(tokenizer: FileTokenizer, tmp_path: Path) -> None:
    class Unreadable(Captions):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("counted again")

    samples = many_samples()[:20]
    first = count_corpus(Captions(samples), tokenizer, tmp_path)
    again = count_corpus(Unreadable(samples), tokenizer, tmp_path)
    assert again.num_documents == first.num_documents
    assert (again.document_frequency == first.document_frequency).all()
    assert not list(tmp_path.rglob("*.part"))
    other = count_corpus(Captions(samples), ClipTokenizer(), tmp_path)
    assert len(other.document_frequency) == 49408 and other.document_frequency.sum() > 0


def test_a_pass_that_breaks_leaves_nothing_behind(tokenizer: FileTokenizer, tmp_path: Path) -> None:
    class Broken(Captions):
        def __getitem__(self, index: Any) -> Any:
            if index == 15:
                raise RuntimeError("power cut")
            return super().__getitem__(index)

    samples = many_samples()[:20]
    with pytest.raises(RuntimeError, match="power cut"):
        count_corpus(Broken(samples), tokenizer, tmp_path)
    assert count_corpus(Captions(samples), tokenizer, tmp_path).num_documents > 0


def test_empty_captions_are_no_documents() -> None:
    source = Captions([("a cat", " ", "&nbsp;\x00", "!")])
    assert captions_at(source, 0) == ("a cat", "!")


def test_a_cache_that_cannot_be_written_is_refused(tokenizer: FileTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="VLMKIT_CACHE"):
        count_corpus(Captions([("a",)]), tokenizer, tmp_path / "file")
