"""What all caption tokenizers share: a compiled (Rust) tokenizer that reads repaired captions up to a length."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numpy as np
from tokenizers import Encoding, Tokenizer

from vlmkit.data.caption_text import repair
from vlmkit.data.caption_tokenizers.readable import readable_texts
from vlmkit.errors import UserError

TOKENIZER_FILE = "tokenizer.json"

# How tokenizers mark in a token's text that a word begins, goes on or ends there.
_WORD_MARKS = re.compile(r"^(?:##|[▁Ġ\s]+)|(?:</w>|[▁\s]+)$")


class CaptionTokenizer:
    """Turns captions into token ids, at most ``context_length`` of them, start and end ids and the like included.

    Captions are repaired first (:func:`vlmkit.data.caption_text.repair`). ``vocab_size`` is one more than the largest
    id. ``special_ids`` stand for no text of a caption (start, end, padding, unknown, ...). Bags leave them out, unless
    ``keep_special``: then they hold what the tokenizer gives, and ``padding_ids`` where the caption does not fill the
    context. Raises UserError if the context leaves no room for a caption.
    """

    kind: ClassVar[str]
    """How a saved tokenizer is told from the other kinds."""
    padding_ids: ClassVar[frozenset[int]] = frozenset()
    """What fills a caption up to the context, where that is an id of the vocabulary."""

    def __init__(self, tokenizer: Tokenizer, context_length: int, keep_special: bool = False) -> None:
        added = tokenizer.num_special_tokens_to_add(is_pair=False)
        if context_length <= added:
            raise UserError(
                f"A context of {context_length} ids leaves no room for a caption; use {added + 1} or more, e.g. 77."
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(context_length)
        self._tokenizer = tokenizer
        self.context_length = context_length
        self.keep_special = keep_special
        self.vocab_size: int = max(tokenizer.get_vocab().values()) + 1
        self.special_ids = _special_ids(tokenizer)

    def bag(self, caption: str) -> np.ndarray:
        """Distinct ids of the caption's tokens inside the context, ascending: int64 [L]."""
        return self.distinct(self._tokenizer.encode(self._prepare(caption)))

    def bags(self, captions: Sequence[str]) -> list[np.ndarray]:
        """``bag`` of each caption; several cores work on a large batch."""
        return [self.distinct(encoding) for encoding in self.encodings(captions)]

    def encodings(self, captions: Sequence[str]) -> list[Encoding]:
        """Each caption as the tokenizer gives it: ``ids``, ``special_tokens_mask``, and ``overflowing`` where cut."""
        encodings: list[Encoding] = self._tokenizer.encode_batch_fast([self._prepare(text) for text in captions])
        return encodings

    def distinct(self, encoding: Encoding) -> np.ndarray:
        """The bag of a caption that is encoded already: int64 [L]."""
        ids = set(encoding.ids)
        if not self.keep_special:
            ids -= self.special_ids
        elif len(encoding.ids) < self.context_length:
            ids |= self.padding_ids
        return np.array(sorted(ids), dtype=np.int64)

    def texts(self) -> list[str]:
        """The text of each id, without the marks that say where a word begins or ends: [vocab_size]."""
        decoded = self._tokenizer.decode_batch([[token] for token in range(self.vocab_size)], skip_special_tokens=False)
        return [_WORD_MARKS.sub("", text) for text in decoded]

    def readable_texts(self) -> list[str]:
        """What a report calls each id: fragments of words and lone bytes marked as such (:mod:`.readable`)."""
        return readable_texts(self._tokenizer, self.texts(), self.special_ids)

    @cached_property
    def fingerprint(self) -> str:
        """A hex digest of everything that decides the ids."""
        kept = " with special ids" if self.keep_special else ""
        return sha256(f"{self.kind}{kept}\n{self._tokenizer.to_str()}".encode()).hexdigest()

    def save(self, directory: str | Path) -> None:
        """Write ``tokenizer.json`` and its config, which ``transformers.AutoTokenizer`` loads, into ``directory``.

        The file itself does all but the repair of captions and the finer points of folding case.
        """
        self._portable().save(str(Path(directory) / TOKENIZER_FILE))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.context_length,
            **self._named_tokens(),
        }
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _prepare(self, caption: str) -> str:
        return repair(caption)

    def _portable(self) -> Tokenizer:
        return self._tokenizer

    def _named_tokens(self) -> dict[str, str]:
        """Tokens with a role, by the names that transformers gives the roles."""
        return {}


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Added tokens marked special, and the model's unknown token, which need not be marked."""
    special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_id")  # Unigram (sentencepiece) gives an id, the other models a text
    if unknown is None and model.get("unk_token") is not None:
        unknown = tokenizer.token_to_id(model["unk_token"])
    return frozenset(special if unknown is None else special | {unknown})
