"""The label report against corpora counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vlmkit.config import LabelConfig
from vlmkit.data.caption_tokenizers import FileTokenizer, LabelTokenizer, build_label_tokenizer
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.errors import UserError
from vlmkit.evals.label_report import label_report, read_label_report

SETTINGS = LabelConfig(tokenizer="toy.json", context_length=5)


class Captions(list[CaptionSample]):
    fingerprint = "toy"


class Gone(CaptionSample):
    @property
    def captions(self) -> tuple[str, ...]:  # type: ignore[override]
        raise BadSample("gone")


def source(*samples: tuple[str, ...]) -> Captions:
    return Captions(CaptionSample(b"", captions) for captions in samples)


def tokenizer() -> LabelTokenizer:
    """Words between <s> and </s>: three of a caption are read. ``the`` is masked."""
    names = ["<s>", "</s>", "?", "the", "cat", "dog", "hat", "never"]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    words.add_special_tokens(["<s>", "</s>"])
    return LabelTokenizer(FileTokenizer(words, SETTINGS.context_length), [3])


TOY = source(
    ("the cat", "the dog cat hat hat"),  # cat | dog cat, with two of five words cut
    ("the the the",),  # nothing
    ("zebra cat cat", " "),  # cat; a blank caption is none
)


def test_the_report_equals_a_count_by_hand() -> None:
    weights = torch.arange(8, dtype=torch.float64) / 8
    report = label_report(TOY, tokenizer(), SETTINGS, weights)
    assert (report.samples, report.samples_read, report.captions) == (3, 3, 4)
    assert report.labels_histogram == [1, 2, 1] and report.labels_mean == 1.0
    assert report.labels_percentiles == {0: 0, 5: 0, 25: 0, 50: 1, 75: 1, 95: 2, 100: 2}
    assert report.unlabelled == 1 / 4 and report.truncated == 1 / 4
    assert report.num_classes == 4 and report.classes_seen == 2 / 4  # cat, dog; not hat, never
    assert report.tokens_labelled == pytest.approx((1 + 2 + 0 + 2) / (2 + 5 + 3 + 3))
    assert [(row.id, row.text, row.captions, row.weight) for row in report.frequent] == [
        (4, "cat", 3 / 4, 4 / 8),
        (5, "dog", 1 / 4, 5 / 8),
    ]
    assert [row.text for row in report.weights_high] == ["cat"], "dog is in too few captions to be called heavy"
    assert [row.text for row in report.weights_low] == ["cat", "dog"]
    facts = dict(report.facts())
    assert facts["captions cut at the context"] == "25.00%" and facts["classes seen"] == "50.00% of 4"


def test_without_weights_there_are_no_lists_of_weights() -> None:
    report = label_report(TOY, tokenizer(), SETTINGS)
    assert report.weights_high == report.weights_low == []
    assert {row.weight for row in report.frequent} == {None}


def test_equal_tokens_are_listed_by_falling_id() -> None:
    report = label_report(source(("never hat",), ("dog cat",)), tokenizer(), SETTINGS, torch.ones(8))
    assert [row.id for row in report.frequent] == [row.id for row in report.weights_low] == [7, 6, 5, 4]


def test_the_heaviest_are_common_enough_and_of_equal_ones_the_more_common_come_first() -> None:
    samples = source(*[("cat",)] * 3, *[("dog cat",)] * 3, ("hat",))
    report = label_report(samples, tokenizer(), SETTINGS, torch.tensor([0, 0, 0, 0, 1, 1, 2, 2.0]))
    assert report.heavy_captions == 3
    assert [row.text for row in report.weights_high] == ["cat", "dog"]
    assert [row.text for row in report.weights_low] == ["cat", "dog", "hat"]


def test_special_ids_that_are_kept_are_labels_but_no_words() -> None:
    kept = LabelTokenizer(FileTokenizer(tokenizer().tokenizer._tokenizer, SETTINGS.context_length, keep_special=True))
    report = label_report(source(("cat dog",), ("cat hat hat hat",)), kept, SETTINGS)
    assert report.labels_histogram == [0, 0, 0, 0, 2] and report.num_classes == 8
    assert [row.text for row in report.frequent][:3] == ["cat", "</s>", "<s>"]
    assert report.tokens_labelled == pytest.approx(5 / 6)


def test_a_limit_takes_samples_spread_over_the_source() -> None:
    samples = source(*[("cat",)] * 5, *[("dog",)] * 5)
    report = label_report(samples, tokenizer(), SETTINGS, limit=4)
    assert (report.samples, report.samples_read, report.captions) == (10, 4, 4)
    assert {row.text: row.captions for row in report.frequent} == {"cat": 0.5, "dog": 0.5}


def test_bad_samples_are_left_out_and_nothing_at_all_is_refused() -> None:
    gone = object.__new__(Gone)
    report = label_report(Captions([gone, CaptionSample(b"", ("cat",))]), tokenizer(), SETTINGS)
    assert report.captions == 1 and report.samples_read == 2
    with pytest.raises(UserError, match="nothing to report"):
        label_report(Captions([gone]), tokenizer(), SETTINGS)


@pytest.mark.parametrize("weighted", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_report_is_written_read_back_and_always_the_same(weighted: bool, tmp_path: Path) -> None:
    labels = LabelConfig(mask_stop_words=True)
    samples = source(("a $5 photo of $ 東京", "é &amp; è"), ("a cat " * 60,))
    clip = build_label_tokenizer(labels, samples, tmp_path)
    weights = torch.full((clip.vocab_size,), math.log(2)) if weighted else None
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        report = label_report(samples, clip, labels, weights)
        report.write(tmp_path / name)
        assert read_label_report(tmp_path / name) == report
        files.append([(tmp_path / name / f"label_report.{end}").read_bytes() for end in ("json", "png")])
    assert files[0] == files[1]
    assert json.loads(files[0][0])["truncated"] == pytest.approx(1 / 3)
    picture = Image.open(tmp_path / "first" / "label_report.png").convert("RGB")
    assert min(picture.size) > 400 and len(picture.getcolors(2**24)) > 20


def test_a_directory_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no label_report.*superclass or superclip.*--train-data"):
        read_label_report(tmp_path)
