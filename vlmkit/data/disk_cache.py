"""What is derived from data and kept on disk: indexes, converted tables, fetched shards.

Everything lies in the user's cache directory, ``$VLMKIT_CACHE``, else ``~/.cache/vlmkit``. On a machine where that
cannot be written, it lasts as long as the process that derived it.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from vlmkit.errors import UserError

T = TypeVar("T")


def cache_folder(name: str) -> Path:
    """Where the cache keeps one kind of thing; not made yet."""
    return Path(os.environ.get("VLMKIT_CACHE") or Path.home() / ".cache" / "vlmkit") / name


def read_or_build(directory: Path, read: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """``read(directory)``, after ``build(directory)`` where it is missing or damaged.

    A directory appears whole or not at all, and of several processes that want it at once one builds and the others
    wait. ``read`` raises OSError, ValueError, KeyError or TypeError on anything but what ``build`` leaves. Raises
    UserError if the disk is full.
    """
    try:
        return read(directory)
    except (OSError, ValueError, KeyError, TypeError):
        directory = _writable(directory)
    with locked(directory.with_suffix(".lock")):
        try:
            return read(directory)
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(directory, ignore_errors=True)
        scratch = directory.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            build(scratch)
            scratch.rename(directory)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise disk_full(directory.parent) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return read(directory)


def disk_full(directory: Path) -> UserError:
    """The error of a cache that does not fit on its disk."""
    return UserError(f"The disk of {directory} is full; free space, or set VLMKIT_CACHE to a folder on another disk.")


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path`` against all other holders, threads included; yields False if not held."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            # A process forked meanwhile has the file open too, so closing it here would not release the lock.
            fcntl.flock(file, fcntl.LOCK_UN)


def _writable(directory: Path) -> Path:
    """``directory``, its parent made; or one of the same name that goes when the process does."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if os.access(directory.parent, os.W_OK):
            return directory
    except OSError:
        pass  # the other way out is below
    scratch = Path(tempfile.mkdtemp(prefix="vlmkit-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return scratch / directory.name
