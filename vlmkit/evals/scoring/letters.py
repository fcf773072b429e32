"""Options by letter: ``A`` is the first of the choices shown."""

from __future__ import annotations

import string

from vlmkit.errors import UserError
from vlmkit.evals.scoring.case import Case

ALPHABET = string.ascii_uppercase


def options(case: Case) -> dict[str, str]:
    """The text of each option by its letter; empty where the case does not say what was shown."""
    return dict(zip(ALPHABET, case.get("choices") or (), strict=False))


def if_shown(letter: str, case: Case) -> str:
    """``letter`` where it names an option, else "". A case without choices is taken to have shown A to Z."""
    return letter if letter in (options(case) or set(ALPHABET)) else ""


def is_right(letter: str, case: Case) -> bool:
    """Whether ``letter`` names a reference of the case."""
    return letter in {_as_letter(reference, case) for reference in case["references"]}


def _as_letter(reference: str, case: Case) -> str:
    """A reference is a letter in either case; only what is no letter of an option is looked up among their texts."""
    name = reference.strip()
    if letter := if_shown(name.upper(), case):
        return letter
    same_text = [letter for letter, text in options(case).items() if text.strip().casefold() == name.casefold()]
    if len(same_text) != 1:
        raise UserError(
            f"the reference {reference!r} is neither the letter nor the text of exactly one option "
            f"of {list(case.get('choices', ()))}: give the letter"
        )
    return same_text[0]
