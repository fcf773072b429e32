"""The words of a corpus as a vocabulary."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from vlmkit.contracts import Source
from vlmkit.data.caption_text import repair
from vlmkit.data.caption_tokenizers.base import CaptionTokenizer
from vlmkit.data.corpus import PassProgress, batches_of_captions, kept_file
from vlmkit.data.samples import CaptionSample
from vlmkit.errors import UserError

UNKNOWN = "<unk>"

_VERSION = 1
"""Goes up when the same captions would give other words."""
_WORD = r"[\p{L}\p{M}\p{N}]+"


class WordTokenizer(CaptionTokenizer):
    """Whole words: runs of letters, marks and digits, case-folded. Id 0 is special: every word not in the vocabulary.

    An apostrophe or hyphen ends a word (``girl's`` is ``girl`` and ``s``); scripts without spaces give whole runs.
    """

    kind = "word"

    @classmethod
    def from_corpus(
        cls,
        source: Source[CaptionSample],
        num_words: int,
        context_length: int,
        cache_dir: Path,
        progress: PassProgress | None = None,
        keep_special: bool = False,
    ) -> WordTokenizer:
        """The ``num_words`` most frequent words of all captions as ids 1, 2, ...: by falling count, then by code point.

        One pass over the captions, kept in ``cache_dir``. Raises UserError if the captions hold no word.
        """
        key = sha256(f"{_VERSION}\n{source.fingerprint}\n{num_words}".encode()).hexdigest()
        content = kept_file(
            cache_dir / "words" / f"{key}.json", lambda: _count_words(source, num_words, progress).to_str().encode()
        )
        return cls(Tokenizer.from_str(content.decode()), context_length, keep_special)

    def _prepare(self, caption: str) -> str:
        return repair(caption).casefold()

    def _named_tokens(self) -> dict[str, str]:
        return {"unk_token": UNKNOWN}


def _count_words(source: Source[CaptionSample], num_words: int, progress: PassProgress | None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    # Captions come case-folded; lower-casing is for those who load the saved file elsewhere.
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    trainer = trainers.WordLevelTrainer(vocab_size=num_words + 1, special_tokens=[UNKNOWN], show_progress=False)
    batches = batches_of_captions(source, progress)
    tokenizer.train_from_iterator(([repair(text).casefold() for text in batch] for batch in batches), trainer)
    if tokenizer.get_vocab_size() == 1:
        raise UserError(
            "The captions of the training data hold no word to make labels of; use --set labels.tokenizer=clip."
        )
    return tokenizer
