"""Levenshtein's distance between two texts."""

from __future__ import annotations


def levenshtein(first: str, second: str) -> int:
    """The fewest insertions, deletions and replacements of one character that turn ``first`` into ``second``."""
    row = list(range(len(second) + 1))
    for i, before in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, after in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (before != after))
    return row[-1]
