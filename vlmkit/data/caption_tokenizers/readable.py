"""Tokens as people read them: whole words plain, fragments of words and bytes of characters marked as such."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence, Set

from tokenizers import Tokenizer

_BEGINNINGS = ("▁", "Ġ")
"""How tokens of sentencepiece and of byte-level vocabularies say that a word begins."""
_SHOWN = "vlmkit_shown_bytes"


def byte_characters() -> dict[str, int]:
    """The printable stand-ins of the 256 bytes in byte-level vocabularies, in CLIP's order: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = [chr(byte) for byte in printable] + [chr(256 + extra) for extra in range(len(others))]
    return dict(zip(stand_ins, [*printable, *others], strict=True))


def readable_texts(tokenizer: Tokenizer, texts: Sequence[str], special_ids: Set[int]) -> list[str]:
    """What a report calls each id, whose plain text is in ``texts`` [vocab_size].

    A hyphen stands where a word goes on, as dictionaries write affixes: ``re-`` is followed by more of its word and
    ``-ing`` preceded. Which side is known depends on the vocabulary: CLIP's marks the end of words, others their
    beginning. Bytes that are no whole character alone are written ``<0xE2>``. Special ids stay as they are, and tokens
    of nothing but space are called by the vocabulary's own name.
    """
    tokens = [tokenizer.id_to_token(index) or "" for index in range(len(texts))]
    mark = _marker(json.loads(tokenizer.to_str())["model"], tokens)
    return [
        token if index in special_ids else mark(token, _shown(token, text) or token)
        for index, (token, text) in enumerate(zip(tokens, texts, strict=True))
    ]


def _marker(model: dict[str, object], tokens: Sequence[str]) -> Callable[[str, str], str]:
    """(token, its text) -> the text with a hyphen where the token says that its word goes on."""
    end, inside = model.get("end_of_word_suffix"), model.get("continuing_subword_prefix")
    if isinstance(end, str) and end:
        return lambda token, text: text if token.endswith(end) else f"{text}-"
    if isinstance(inside, str) and inside:
        return lambda token, text: f"-{text}" if token.startswith(inside) else text
    if any(token.startswith(_BEGINNINGS) for token in tokens):
        return lambda token, text: text if token.startswith(_BEGINNINGS) else f"-{text}"
    return lambda token, text: text


def _shown(token: str, text: str) -> str:
    """The text of a token, or where it is no whole characters, its bytes."""
    if "\ufffd" not in text:
        return text
    characters = token.removesuffix("</w>").lstrip("Ġ")
    if not all(character in _BYTES for character in characters):
        return characters
    return bytes(_BYTES[character] for character in characters).decode("utf-8", _SHOWN)


def _show_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


_BYTES = byte_characters()
codecs.register_error(_SHOWN, _show_bytes)
