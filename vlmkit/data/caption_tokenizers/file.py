"""Any tokenizer in the file form of the ``tokenizers`` library: WordPiece, sentencepiece's unigrams, other BPEs."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizers import Tokenizer

from vlmkit.data.caption_tokenizers.base import TOKENIZER_FILE, CaptionTokenizer
from vlmkit.errors import UserError

_KINDS = frozenset({"wordpiece", "sentencepiece", "unigram", "bpe", "wordlevel"})
"""What people call tokenizers by, and no file of one."""


class FileTokenizer(CaptionTokenizer):
    """A tokenizer as its ``tokenizer.json`` describes it, fed with repaired captions."""

    kind = "file"

    @classmethod
    def open(cls, name: str, context_length: int, keep_special: bool = False) -> FileTokenizer:
        """Read a ``tokenizer.json``, a directory that holds one, or the one of a hub id (cached files do offline).

        Raises UserError where there is none or it cannot be read.
        """
        path = Path(name).expanduser()
        if path.is_dir():
            path = path / TOKENIZER_FILE
        if path.is_file():
            return cls(read_tokenizer(path), context_length, keep_special)
        if path.is_absolute() or path.suffix == ".json" or name.startswith((".", "~")) or name.count(os.sep) > 1:
            raise UserError(
                f"There is no tokenizer file at {path}; give a tokenizer.json, a directory that holds one, or a hub id."
            )
        if name.lower() in _KINDS:
            raise UserError(
                f"{name} is a kind of tokenizer, not a tokenizer; give the path of a tokenizer.json, or a hub id such "
                "as google-bert/bert-base-uncased."
            )
        return cls(_from_hub(name), context_length, keep_special)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``. Raises UserError if the file is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the compiled library raises nothing narrower
        raise UserError(
            f"{path} is no file of the tokenizers library ({error}); save the tokenizer with transformers or "
            "tokenizers, which write tokenizer.json."
        ) from error


def _from_hub(name: str) -> Tokenizer:
    try:
        return Tokenizer.from_pretrained(name)
    except Exception as error:  # from the hub's client many kinds, from the compiled library nothing narrower
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"The tokenizer {name} cannot be had here (no such path, not in the hub cache, not downloadable): {reason};"
            " use clip, word, the path of a tokenizer.json, or a hub id such as google-bert/bert-base-uncased."
        ) from error
