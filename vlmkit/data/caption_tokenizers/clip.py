"""CLIP's byte-pair encoding, compiled."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vlmkit.data.caption_text import repair
from vlmkit.data.caption_tokenizers.base import CaptionTokenizer
from vlmkit.data.caption_tokenizers.readable import byte_characters
from vlmkit.errors import UserError

START, END = "<start_of_text>", "<end_of_text>"

_NUM_MERGES = 49152 - 256 - 2
# The long s is there because the original pattern ignores case.
_WORDS = r"""'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"""


class ClipTokenizer(CaptionTokenizer):
    """CLIP's byte-pair encoding (49408 ids), equal to open_clip's ``SimpleTokenizer`` but compiled.

    Read from the vocabulary file that open_clip carries, without importing open_clip. A caption is repaired,
    lower-cased, encoded between start and end ids, and cut to ``context_length`` ids, the last of which is then the
    end id.
    """

    kind = "clip"
    padding_ids = frozenset({0})  # which is also the token "!"

    def __init__(self, context_length: int = 77, keep_special: bool = False) -> None:
        super().__init__(_clip_bpe(), context_length, keep_special)

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Ids of each caption between start and end, padded with 0: int64 [B, context_length]."""
        rows = np.zeros((len(captions), self.context_length), dtype=np.int64)
        for row, encoding in zip(rows, self.encodings(captions), strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return rows

    def _prepare(self, caption: str) -> str:
        return repair(caption).lower()

    def _portable(self) -> Tokenizer:
        portable = Tokenizer.from_str(self._tokenizer.to_str())
        portable.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
        )
        return portable

    def _named_tokens(self) -> dict[str, str]:
        return {"bos_token": START, "eos_token": END}


def _clip_bpe() -> Tokenizer:
    """The vocabulary in CLIP's order: bytes, bytes that end a word, merges by rank, start and end."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UserError("open_clip_torch is not installed, which carries the caption vocabulary; pip install it.")
    with gzip.open(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : 1 + _NUM_MERGES])]
    alphabet = list(byte_characters())
    tokens = alphabet + [character + "</w>" for character in alphabet] + [left + right for left, right in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return tokenizer
