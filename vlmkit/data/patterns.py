"""Which files a pattern stands for: a file, a folder, a glob, with braces or without, here or behind a URL."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from vlmkit.data.remote import find_remote, is_remote

_BRACES = re.compile(r"\{([^{}]*)\}")


def find_paths(pattern: str, suffix: str) -> list[str]:
    """Paths, or URLs if ``pattern`` is one, in order; of a folder those that end in ``suffix``.

    Braces count (``{0000..0120}``) or list (``{a,b}``). A path without wildcards is returned whether it exists or not.
    """
    found: list[str] = []
    for expanded in _expand_braces(pattern):
        if is_remote(expanded):
            found += find_remote(expanded, suffix)
            continue
        path = Path(expanded).expanduser()
        if path.is_dir():
            found += sorted(map(str, path.glob(f"*{suffix}")))
        elif glob.has_magic(expanded):
            found += sorted(glob.glob(str(path)))
        else:
            found.append(str(path))
    return found


def _expand_braces(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        choices = [str(number).zfill(len(span[1])) for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
