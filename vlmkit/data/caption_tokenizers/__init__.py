"""Captions as token ids: CLIP's own, a corpus's words, or any tokenizers file; and which ids are labels."""

from vlmkit.data.caption_tokenizers.base import CaptionTokenizer
from vlmkit.data.caption_tokenizers.clip import ClipTokenizer
from vlmkit.data.caption_tokenizers.file import FileTokenizer
from vlmkit.data.caption_tokenizers.labels import LabelTokenizer, build_label_tokenizer, load_label_tokenizer
from vlmkit.data.caption_tokenizers.word import WordTokenizer

__all__ = [
    "CaptionTokenizer",
    "ClipTokenizer",
    "FileTokenizer",
    "LabelTokenizer",
    "WordTokenizer",
    "build_label_tokenizer",
    "load_label_tokenizer",
]
