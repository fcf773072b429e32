"""Which tokens of a caption are labels: the one place where masks are made, applied and kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
from tokenizers import Encoding

from vlmkit.config import LabelConfig
from vlmkit.contracts import Source
from vlmkit.data.caption_tokenizers.base import TOKENIZER_FILE, CaptionTokenizer
from vlmkit.data.caption_tokenizers.clip import ClipTokenizer
from vlmkit.data.caption_tokenizers.file import FileTokenizer, read_tokenizer
from vlmkit.data.caption_tokenizers.word import WordTokenizer
from vlmkit.data.corpus import PassProgress, count_corpus
from vlmkit.data.samples import CaptionSample
from vlmkit.data.stop_words import STOP_WORDS
from vlmkit.errors import UserError

LABELS_FILE = "label_tokenizer.json"


class LabelTokenizer:
    """A caption tokenizer and the ids that are not trained on: special ids, unless the tokenizer keeps them in its
    bags, and those in ``masked_ids``.

    ``is_label`` bool [vocab_size] says which ids can be labels. Masked ids keep their numbers, so counts and heads of
    one tokenizer compare whatever is masked.
    """

    def __init__(self, tokenizer: CaptionTokenizer, masked_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.is_label = np.ones(self.vocab_size, dtype=np.bool_)
        self.is_label[[*masked_ids]] = False
        if not tokenizer.keep_special:
            self.is_label[[*tokenizer.special_ids]] = False

    def bag(self, caption: str) -> np.ndarray:
        """Distinct ids of the caption's labels, ascending: int64 [L]; empty where all its tokens are masked."""
        return self._labels(self.tokenizer.bag(caption))

    def bags(self, captions: Sequence[str]) -> list[np.ndarray]:
        """``bag`` of each caption, much faster than one by one."""
        return [self._labels(bag) for bag in self.tokenizer.bags(captions)]

    def bag_of(self, encoding: Encoding) -> np.ndarray:
        """The bag of a caption that ``tokenizer.encodings`` has encoded."""
        return self._labels(self.tokenizer.distinct(encoding))

    def _labels(self, ids: np.ndarray) -> np.ndarray:
        return ids[self.is_label[ids]]

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest of everything that decides the labels."""
        return sha256(self.tokenizer.fingerprint.encode() + self.is_label.tobytes()).hexdigest()

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files and the masks into ``directory``; ``load_label_tokenizer`` reads them back."""
        self.tokenizer.save(directory)
        content = {
            "tokenizer": self.tokenizer.kind,
            "context_length": self.tokenizer.context_length,
            "mask_special_ids": not self.tokenizer.keep_special,
            "masked_ids": np.flatnonzero(~self.is_label).tolist(),
        }
        (Path(directory) / LABELS_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def build_label_tokenizer(
    labels: LabelConfig, source: Source[CaptionSample], cache_dir: Path, progress: PassProgress | None = None
) -> LabelTokenizer:
    """The labels that a recipe asks for, over the captions of ``source``.

    The ``word`` tokenizer and ``min_captions`` take a pass over the captions each, whose results ``cache_dir`` keeps.
    A token is a stop word if its text is one, without the marks of where words begin and end: a fragment inside a
    longer word that reads like a stop word is masked with it. Raises UserError if nothing is left to train on.
    """
    tokenizer = _open_tokenizer(labels, source, cache_dir, progress)
    masked = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    if labels.mask_stop_words:
        masked |= [text.casefold() in STOP_WORDS for text in tokenizer.texts()]
    if labels.min_captions:
        masked |= count_corpus(source, tokenizer, cache_dir, progress).document_frequency < labels.min_captions
    built = LabelTokenizer(tokenizer, np.flatnonzero(masked))
    if not built.is_label.any():
        raise UserError(
            f"None of the {tokenizer.vocab_size} tokens is left to train on after {_masks(labels)}; loosen these, or "
            "give a larger vocabulary (of words: labels.vocab_size)."
        )
    return built


def _masks(labels: LabelConfig) -> str:
    """The masks of a recipe, for a message."""
    masks = ["labels.mask_special_ids"] * labels.mask_special_ids
    masks += ["labels.mask_stop_words"] * labels.mask_stop_words
    masks += [f"labels.min_captions={labels.min_captions}"] * (labels.min_captions > 0)
    return " and ".join(masks)


def load_label_tokenizer(directory: str | Path) -> LabelTokenizer:
    """The label tokenizer that was saved in ``directory``. Raises UserError if none was."""
    path = Path(directory) / LABELS_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} holds no {LABELS_FILE}; give the model directory of a run whose objective classifies."
        )
    saved = json.loads(path.read_text(encoding="utf-8"))
    kind, context_length = saved["tokenizer"], saved["context_length"]
    keep_special = not saved.get("mask_special_ids", True)
    if kind == ClipTokenizer.kind:  # its file does what only the repair does here, so it is made afresh
        return LabelTokenizer(ClipTokenizer(context_length, keep_special), saved["masked_ids"])
    opened: type[CaptionTokenizer] = {known.kind: known for known in (WordTokenizer, FileTokenizer)}[kind]
    tokenizer = opened(read_tokenizer(path.with_name(TOKENIZER_FILE)), context_length, keep_special)
    return LabelTokenizer(tokenizer, saved["masked_ids"])


def _open_tokenizer(
    labels: LabelConfig, source: Source[CaptionSample], cache_dir: Path, progress: PassProgress | None
) -> CaptionTokenizer:
    context_length, keep_special = labels.context_length, not labels.mask_special_ids
    if labels.tokenizer == "clip":
        return ClipTokenizer(context_length, keep_special)
    if labels.tokenizer == "word":
        return WordTokenizer.from_corpus(
            source, labels.vocab_size, context_length, cache_dir, progress, keep_special=keep_special
        )
    return FileTokenizer.open(labels.tokenizer, context_length, keep_special)
