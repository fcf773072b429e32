"""Which tokens of a caption are labels: the one place where masks are made, applied and kept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

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
    """A caption tokenizer and the ids that are not trained on: special ids, and those in ``masked_ids``.

    ``is_label`` bool [vocab_size] says which ids can be labels. Masked ids keep their numbers, so counts and heads of
    one tokenizer compare whatever is masked.
    """

    def __init__(self, tokenizer: CaptionTokenizer, masked_ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.is_label = np.ones(self.vocab_size, dtype=np.bool_)
        self.is_label[[*tokenizer.special_ids, *masked_ids]] = False

    def bag(self, caption: str) -> np.ndarray:
        """Distinct ids of the caption's labels, ascending: int64 [L]; empty where all its tokens are masked."""
        ids = self.tokenizer.bag(caption)
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
            f"No token of the training data is in {labels.min_captions} or more captions, so there is nothing to train "
            "on; lower labels.min_captions."
        )
    return built


def load_label_tokenizer(directory: str | Path) -> LabelTokenizer:
    """The label tokenizer that was saved in ``directory``. Raises UserError if none was."""
    path = Path(directory) / LABELS_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} holds no {LABELS_FILE}; give the model directory of a run whose objective classifies."
        )
    saved = json.loads(path.read_text(encoding="utf-8"))
    kind, context_length = saved["tokenizer"], saved["context_length"]
    if kind == ClipTokenizer.kind:  # its file does what only the repair does here, so it is made afresh
        return LabelTokenizer(ClipTokenizer(context_length), saved["masked_ids"])
    opened: type[CaptionTokenizer] = {known.kind: known for known in (WordTokenizer, FileTokenizer)}[kind]
    return LabelTokenizer(opened(read_tokenizer(path.with_name(TOKENIZER_FILE)), context_length), saved["masked_ids"])


def _open_tokenizer(
    labels: LabelConfig, source: Source[CaptionSample], cache_dir: Path, progress: PassProgress | None
) -> CaptionTokenizer:
    if labels.tokenizer == "clip":
        return ClipTokenizer(labels.context_length)
    if labels.tokenizer == "word":
        return WordTokenizer.from_corpus(source, labels.vocab_size, labels.context_length, cache_dir, progress)
    return FileTokenizer.open(labels.tokenizer, labels.context_length)
