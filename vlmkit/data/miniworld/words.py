"""English that captions, questions and labels share."""

from __future__ import annotations

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")


def plural(noun: str) -> str:
    """The regular plural: stars, crosses, boxes."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")
