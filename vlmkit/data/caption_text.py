"""Captions as found on the web, repaired before any tokenizer reads them."""

from __future__ import annotations

import html
from functools import lru_cache

import ftfy


@lru_cache(maxsize=4096)  # one caption is asked for by several readers in a row
def repair(caption: str) -> str:
    """The caption with broken encodings mended (ftfy), HTML entities resolved and white space collapsed.

    Entities are resolved twice, as CLIP does, since web text often holds them escaped. Case is kept: it is for the
    tokenizer to fold. An empty result means that there is nothing to read.
    """
    if caption.isascii() and caption.isprintable() and "&" not in caption:
        return " ".join(
            caption.split()
        )  # the rest of this function changes nothing in such a text, at 20 times the cost
    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(text.split())
