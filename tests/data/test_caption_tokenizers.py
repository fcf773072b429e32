"""Caption tokenizers: CLIP's against open_clip's own, words and files against hand-made ones; masks of labels."""

from __future__ import annotations

import html
import pickle
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import ftfy
import huggingface_hub
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from vlmkit.config import LabelConfig
from vlmkit.data.caption_text import repair
from vlmkit.data.caption_tokenizers import (
    ClipTokenizer,
    FileTokenizer,
    LabelTokenizer,
    WordTokenizer,
    build_label_tokenizer,
    load_label_tokenizer,
)
from vlmkit.data.corpus import count_corpus
from vlmkit.data.miniworld import MiniWorld
from vlmkit.data.samples import CaptionSample
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
    "\x1b[36;44mcoloured\x1b[0m terminal",
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


_MIXED_WORDS = """
A photo of Café Zürich naïve ΑΘΗΝΑ Москва 東京 写真 서울 القاهرة कुत्ता red-and-white T-shirt it's DON'T we'll &amp;
&lt;b&gt;bold&lt;/b&gt; <i>tag</i> &#39;quoted&#39; 👍🏽 🐶🐱 🇯🇵 1920x1080 $5.00 50% #tag @user e.g. … “curly” ½
schÃ¶n â€“ ﬁsh Ａｗｉｄｅ
"""


def _mixed_captions(count: int) -> list[str]:
    """Sentences of words in several scripts with entities, tags, emoji, odd spaces, case and punctuation."""
    words = _MIXED_WORDS.split()
    rng = np.random.default_rng(1)
    spaces = [" ", " ", " ", "  ", "\t", "\u00a0", "\u3000", ""]
    return ["".join(words[w] + spaces[rng.integers(8)] for w in rng.integers(0, len(words), 12)) for _ in range(count)]


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.fixture(scope="module")
def peer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def assert_equal_ids(texts: list[str], tokenizer: ClipTokenizer, peer: Any) -> None:
    ours, theirs = tokenizer.encode(texts), peer(texts, tokenizer.context_length).numpy()
    wrong = [text for text, a, b in zip(texts, ours, theirs, strict=True) if (a != b).any()]
    assert not wrong, wrong[:5]


def test_repair_takes_no_short_cut_that_shows() -> None:
    codes = np.random.default_rng(2).integers(0, 128, (1000, 30))
    ascii_texts = ["".join(map(chr, row)) for row in codes]
    for text in [*AWKWARD, *_random_texts(500), *_mixed_captions(200), *ascii_texts]:
        assert repair(text) == " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()), repr(text)


@pytest.mark.parametrize(("context_length", "count"), [(77, 1200), (16, 200)])
def test_equals_open_clip_on_awkward_random_and_mixed_texts(peer: Any, context_length: int, count: int) -> None:
    texts = AWKWARD + _random_texts(count) + _mixed_captions(count // 2)
    assert_equal_ids(texts, ClipTokenizer(context_length), peer)


def test_equals_open_clip_on_captions_of_the_embedded_world(clip: ClipTokenizer, peer: Any) -> None:
    world = MiniWorld("train", 2700)
    texts = [caption for index in range(len(world)) for caption in world.captions(index)]
    assert len(set(texts)) > 7900, "with the texts above, 10,000 that differ"
    assert_equal_ids(texts, clip, peer)


def test_equals_open_clip_on_real_captions(clip: ClipTokenizer, peer: Any, shared_data: Path) -> None:
    texts = []
    for path in sorted((shared_data / "captions").glob("train-*.tar")):
        with tarfile.open(path) as tar:
            texts += [tar.extractfile(member).read().decode() for member in tar if member.name.endswith(".txt")]  # type: ignore[union-attr]
    assert len(texts) == 1379
    assert_equal_ids(texts, clip, peer)


def test_clip_vocabulary(clip: ClipTokenizer, peer: Any) -> None:
    assert clip.vocab_size == peer.vocab_size == 49408
    assert clip.special_ids == {peer.sot_token_id, peer.eot_token_id}
    texts = clip.texts()
    assert len(texts) == 49408
    assert [texts[peer.encoder[token]] for token in ("cat</w>", "cat", "'s</w>", "!</w>")] == ["cat", "cat", "'s", "!"]


def test_bag_holds_distinct_tokens_of_the_window(peer: Any) -> None:
    tokenizer = ClipTokenizer(context_length=8)
    text = "a cat! and a dog! and then something far behind"
    window = peer(text, 8)[0].tolist()[1:-1]
    bag = tokenizer.bag(text)
    assert bag.dtype == np.int64
    assert set(bag.tolist()) == set(window)
    assert (np.diff(bag) > 0).all()
    assert peer.encoder["!</w>"] in bag
    assert 0 in tokenizer.bag("!!x!") or peer.encoder["!!</w>"] in tokenizer.bag("!!x!")  # id 0 is a token, no padding
    assert tokenizer.bag(" ").size == 0
    for single, batched in zip(map(tokenizer.bag, AWKWARD), tokenizer.bags(AWKWARD), strict=True):
        assert single.tolist() == batched.tolist()


def test_saved_clip_tokenizer_loads_in_transformers(clip: ClipTokenizer, tmp_path: Path) -> None:
    clip.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["A photo  of a CAT, isn't it?", "naïve café 東京", "word " * 200]
    for text, row in zip(texts, clip.encode(texts), strict=True):
        ids = loaded(text, truncation=True).input_ids
        assert ids == row[: len(ids)].tolist()
        assert not row[len(ids) :].any()
    assert loaded.decode(loaded("a photo of a cat").input_ids, skip_special_tokens=True).strip() == "a photo of a cat"


def test_tokenizers_pickle(clip: ClipTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(clip))
    assert (copy.encode(AWKWARD) == clip.encode(AWKWARD)).all()


def test_context_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="leaves no room for a caption; use 3 or more"):
        ClipTokenizer(2)


@pytest.mark.slow
def test_open_clip_is_not_imported() -> None:
    code = (
        "import sys; from vlmkit.data.caption_tokenizers import ClipTokenizer; ClipTokenizer();"
        "sys.exit('open_clip' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class Captions(list[CaptionSample]):
    """Image-less captions; the fingerprint follows from the texts."""

    def __init__(self, *captions: str) -> None:
        super().__init__(CaptionSample(b"", (caption,)) for caption in captions)
        self.fingerprint = "|".join(captions)


WORDS = Captions("the cat's hat", "The CAT and a dog", "a dog, a Straße", "straSSE कुत्ता 42", "zebra yak zebra", " ")


def test_words_are_ordered_by_count_and_then_by_word(tmp_path: Path) -> None:
    tokenizer = WordTokenizer.from_corpus(WORDS, 100, 77, tmp_path)
    folded = "the cat s hat the cat and a dog a dog a strasse strasse कुत्ता 42 zebra yak zebra"
    expected = [word for word, _ in sorted(Counter(folded.split()).items(), key=lambda item: (-item[1], item[0]))]
    assert tokenizer.texts()[1:] == expected
    assert tokenizer.vocab_size == len(expected) + 1 and tokenizer.special_ids == {0}

    top = WordTokenizer.from_corpus(WORDS, 3, 77, tmp_path)
    assert top.texts()[1:] == expected[:3] == ["a", "cat", "dog"]
    assert top.bag("A dog-and-cat zebra!").tolist() == [1, 2, 3]  # what is not in the vocabulary is no label
    assert top.bag("zebra").size == top.bag("?!").size == 0


def test_word_context_counts_words(tmp_path: Path) -> None:
    tokenizer = WordTokenizer.from_corpus(WORDS, 100, 2, tmp_path)
    assert {tokenizer.texts()[token] for token in tokenizer.bag("zebra, zebra yak")} == {"zebra"}


def test_words_are_counted_once_for_a_source(tmp_path: Path) -> None:
    class Unreadable(Captions):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("read again")

    first = WordTokenizer.from_corpus(WORDS, 5, 77, tmp_path)
    again = Unreadable()
    again.fingerprint = WORDS.fingerprint
    assert WordTokenizer.from_corpus(again, 5, 77, tmp_path).fingerprint == first.fingerprint
    with pytest.raises(UserError, match="hold no word"):
        WordTokenizer.from_corpus(Captions("!!", "?"), 5, 77, tmp_path)


def wordpiece() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sit", "##s", "##ting", "in", "##in", "gard", "hat"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])  # [UNK] is special without being said to be
    tokenizer.enable_padding(length=12)
    return tokenizer


def unigram() -> Tokenizer:
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁the", -1.0), ("▁cat", -1.0), ("s", -2.0), ("▁Cat", -1.5)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    return tokenizer


def test_a_wordpiece_file_gives_bags_without_special_ids(tmp_path: Path) -> None:
    wordpiece().save(str(tmp_path / "tokenizer.json"))
    for name in (str(tmp_path), str(tmp_path / "tokenizer.json")):
        tokenizer = FileTokenizer.open(name, 77)
        assert tokenizer.special_ids == {0, 1, 2, 3} and tokenizer.vocab_size == 13
        assert tokenizer.bag("The CATS sitting &amp; [SEP] &lt;").tolist() == [4, 5, 6, 7, 8]
    assert FileTokenizer.open(str(tmp_path), 4).bag("the cat sits").tolist() == [4, 5]
    with pytest.raises(UserError, match="use 3 or more"):
        FileTokenizer.open(str(tmp_path), 2)


def test_a_sentencepiece_file_keeps_case_and_unknown_is_no_label(tmp_path: Path) -> None:
    unigram().save(str(tmp_path / "pieces.json"))
    tokenizer = FileTokenizer.open(str(tmp_path / "pieces.json"), 77)
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.bag("the cats 東").tolist() == [2, 3, 4, 5]
    assert tokenizer.bag("Cat").tolist() == [6]
    assert tokenizer.texts()[2:] == ["", "the", "cat", "s", "Cat"]


def test_a_hub_id_is_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--someone--pieces"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    wordpiece().save(str(snapshot / "tokenizer.json"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert FileTokenizer.open("someone/pieces", 77).bag("the cat").tolist() == [4, 5]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such-tokenizer", "cannot be had here"),
        ("wordpiece", "is a kind of tokenizer.*tokenizer.json, or a hub id such as"),
        ("SentencePiece", "is a kind of tokenizer"),
        ("/no/such/folder", "There is no tokenizer file"),
        ("gone.json", "There is no tokenizer file"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FileTokenizer.open(name, 77)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no file of the tokenizers library"):
        FileTokenizer.open(str(tmp_path), 77)


def test_special_and_masked_ids_are_never_labels(clip: ClipTokenizer) -> None:
    labels = LabelTokenizer(clip, clip.bag("the of"))
    assert labels.bag("The cat of <end_of_text> the hat").tolist() == clip.bag("cat hat").tolist()
    assert labels.bag("of the").size == 0
    for caption, bag in zip(AWKWARD, labels.bags(AWKWARD), strict=True):
        assert bag.tolist() == labels.bag(caption).tolist()
    assert labels.vocab_size == 49408 and labels.is_label.sum() == 49408 - 4
    assert labels.fingerprint != LabelTokenizer(clip).fingerprint


def test_stop_words_are_masked_in_every_kind(tmp_path: Path) -> None:
    clip = build_label_tokenizer(LabelConfig(mask_stop_words=True), WORDS, tmp_path)
    assert clip.bag("It's the cat in a hat, and they don't mind").tolist() == clip.bag("cat hat, mind").tolist()
    assert clip.bag("cat").size == 1 and not clip.bag("the and it's don't").size

    words = build_label_tokenizer(LabelConfig(tokenizer="word", mask_stop_words=True), WORDS, tmp_path)
    kept = {words.tokenizer.texts()[token] for token in np.flatnonzero(words.is_label)}
    assert kept == {"cat", "hat", "dog", "strasse", "कुत्ता", "42", "zebra", "yak"}

    for make, kept_pieces in (
        # A fragment that reads like a stop word (##s, ##in) is masked too.
        (wordpiece, {"cat", "sit", "ting", "gard", "hat"}),
        (unigram, {"", "cat", "Cat"}),
    ):
        make().save(str(tmp_path / "tokenizer.json"))
        pieces = build_label_tokenizer(LabelConfig(tokenizer=str(tmp_path), mask_stop_words=True), WORDS, tmp_path)
        assert {pieces.tokenizer.texts()[token] for token in np.flatnonzero(pieces.is_label)} == kept_pieces


def test_rare_tokens_are_masked(tmp_path: Path) -> None:
    labels = build_label_tokenizer(LabelConfig(tokenizer="word", min_captions=2), WORDS, tmp_path)
    kept = {labels.tokenizer.texts()[token] for token in np.flatnonzero(labels.is_label)}
    assert kept == {"the", "cat", "a", "dog", "strasse"}  # zebra stands twice, but in one caption


@pytest.mark.parametrize(
    ("masks", "named"),
    [
        ({"min_captions": 3}, "after labels.mask_special_ids and labels.min_captions=3;"),
        ({"vocab_size": 1, "mask_stop_words": True}, "after labels.mask_special_ids and labels.mask_stop_words;"),
    ],
)
def test_masks_that_leave_nothing_are_named(masks: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        build_label_tokenizer(LabelConfig(tokenizer="word", **masks), WORDS, tmp_path)


def reference_labels(captions: list[str], context_length: int, peer: Any) -> list[list[int]]:
    """Labels as in the reference code: all ids of the padded row, start, end and padding included."""
    return [sorted(set(row)) for row in peer(captions, context_length).tolist()]


def test_kept_special_ids_are_labels_as_in_the_reference_code(peer: Any, tmp_path: Path) -> None:
    config = LabelConfig(context_length=6, mask_special_ids=False)
    labels = build_label_tokenizer(config, WORDS, tmp_path)
    captions = ["a cat", "a cat and a dog and a hat", "four words and no"]  # the last two fill the context
    expected = reference_labels(captions, 6, peer)
    assert [labels.bag(caption).tolist() for caption in captions] == expected
    assert [0 in bag for bag in expected] == [True, False, False]
    masked = build_label_tokenizer(LabelConfig(context_length=6), WORDS, tmp_path)
    assert labels.is_label.all() and labels.fingerprint != masked.fingerprint
    (tmp_path / "saved").mkdir()
    labels.save(tmp_path / "saved")
    loaded = load_label_tokenizer(tmp_path / "saved")
    assert loaded.fingerprint == labels.fingerprint and loaded.bag("a cat").tolist() == expected[0]
    counts = count_corpus(WORDS, labels.tokenizer, tmp_path)
    start, end = sorted(labels.tokenizer.special_ids)
    assert counts.document_frequency[[start, end]].tolist() == [counts.num_documents] * 2
    assert count_corpus(WORDS, masked.tokenizer, tmp_path).document_frequency[[start, end]].tolist() == [0, 0]


def test_kept_special_ids_of_words_and_files(tmp_path: Path) -> None:
    words = build_label_tokenizer(LabelConfig(tokenizer="word", mask_special_ids=False), WORDS, tmp_path)
    assert 0 in words.bag("the unheard-of") and 0 not in words.bag("the cat")
    wordpiece().save(str(tmp_path / "tokenizer.json"))
    pieces = build_label_tokenizer(LabelConfig(tokenizer=str(tmp_path), mask_special_ids=False), WORDS, tmp_path)
    assert pieces.bag("the cat").tolist() == [2, 3, 4, 5]


def test_reports_call_tokens_by_names_that_tell_them_apart(clip: ClipTokenizer, peer: Any) -> None:
    names = clip.readable_texts()
    tokens = ("a</w>", "a", "'s</w>", "æĿ±", "äº", "¢</w>", "Ġ</w>")
    expected = ["a", "a-", "'s", "東-", "<0xE4><0xBA>-", "<0xA2>", "Ġ</w>"]
    assert [names[peer.encoder[token]] for token in tokens] == expected
    assert names[49406] == "<start_of_text>"
    pieces = FileTokenizer(wordpiece(), 77).readable_texts()
    assert pieces[1:10] == ["[UNK]", "[CLS]", "[SEP]", "the", "cat", "sit", "-s", "-ting", "in"]
    assert FileTokenizer(unigram(), 77).readable_texts() == ["<pad>", "<unk>", "▁", "the", "cat", "-s", "Cat"]


@pytest.mark.parametrize("kind", ["clip", "word", "file"])
def test_saved_labels_are_read_back(kind: str, tmp_path: Path) -> None:
    wordpiece().save(str(tmp_path / "tokenizer.json"))
    name = str(tmp_path) if kind == "file" else kind
    labels = LabelConfig(tokenizer=name, context_length=9, mask_stop_words=True)
    built = build_label_tokenizer(labels, WORDS, tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    built.save(saved)
    loaded = load_label_tokenizer(saved)
    assert loaded.fingerprint == built.fingerprint and loaded.vocab_size == built.vocab_size
    texts = [*AWKWARD, *_mixed_captions(50), "the zebra in STRASSE sits", *(caption.captions[0] for caption in WORDS)]
    for text in texts:
        assert loaded.bag(text).tolist() == built.bag(text).tolist()
    assert AutoTokenizer.from_pretrained(saved)("cat").input_ids == built.tokenizer.encodings(["cat"])[0].ids


def test_a_directory_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no label_tokenizer"):
        load_label_tokenizer(tmp_path)
