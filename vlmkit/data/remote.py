"""Files behind URLs, through fsspec: ``s3://``, ``gs://``, ``https://``, ``hf://`` and whatever else it knows."""

from __future__ import annotations

import errno
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmkit.data.disk_cache import disk_full
from vlmkit.errors import UserError

PATIENCE = 330.0
"""Seconds, at least, that ``fetch`` goes on trying: a network that comes back within five minutes ends no run."""

_LONGEST_PAUSE = 60.0
_PASSING_STATUS = (408, 425, 429)
_GLOB = frozenset("*?[")
_QUERY = re.compile(r"\?[\w.-]+=.*")  # any other question mark is a wildcard
_log = logging.getLogger(__name__)


def is_remote(where: str) -> bool:
    """Whether ``where`` is a URL."""
    return "://" in where


def without_query(url: str) -> str:
    """The URL without what may differ each time it is asked for: the query of a web address."""
    return _QUERY.sub("", url) if url.startswith(("http://", "https://")) else url


def find_remote(url: str, suffix: str) -> list[str]:
    """The URLs of the files that ``url`` stands for, in order: those of a glob or a folder (may be none), or itself."""
    filesystem, path = _open(url)
    address = without_query(path)
    is_pattern = bool(_GLOB & set(address))
    if not is_pattern and (address.endswith(suffix) or address != path):  # a query is about one file
        return [url]
    try:
        found = sorted(filesystem.glob(path if is_pattern else f"{path.rstrip('/')}/*{suffix}"))
    except Exception as error:  # every protocol has errors of its own
        raise _unreachable(url, error) from error
    return [filesystem.unstrip_protocol(name) for name in found]


def remote_size(url: str) -> int:
    """Bytes of the file at ``url``. Raises UserError if it is not there or nobody says."""
    filesystem, path = _open(url)
    try:
        size = filesystem.info(path)["size"]
    except Exception as error:
        raise _unreachable(url, error) from error
    if size is None:
        raise UserError(f"The server of {url} does not tell its size; give a manifest that does (?manifest=FILE).")
    return int(size)


def read_remote(url: str, required: bool = True) -> bytes | None:
    """The content of a small file; None if it is not there or, unless it is ``required``, access is refused.

    (S3 refuses access to what is not there, unless one may list.)
    """
    filesystem, path = _open(url)
    try:
        return bytes(filesystem.cat_file(path))
    except FileNotFoundError:
        return None
    except Exception as error:
        if not required and _is_final(error):
            return None
        raise _unreachable(url, error) from error


def fetch(url: str, path: Path, size: int, patience: float = PATIENCE) -> None:
    """Write the file at ``url``, of ``size`` bytes, to ``path``.

    Tries again where that may help, with pauses of ``patience`` seconds together. Raises UserError in the end.
    """
    filesystem, remote_path = _open(url)
    for pause in _pauses(patience):
        try:
            filesystem.get_file(remote_path, str(path))
            if path.stat().st_size == size:
                return
            reason: Exception = OSError(f"{path.stat().st_size} bytes arrived where there should be {size}")
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise disk_full(path.parent) from error
            if _is_final(error):
                raise _unreachable(url, error) from error
            reason = error
        if pause:
            _log.warning("%s did not arrive (%s); trying again in %.0f s", without_query(url), reason, pause)
            time.sleep(pause)
    raise _unreachable(url, reason) from reason


def _pauses(patience: float) -> Iterator[float]:
    """Pauses after attempts: 1 s, then ever longer, ``patience`` together; after the last attempt none."""
    pause = 1.0
    while patience > 0:
        yield min(pause, patience)
        patience -= pause
        pause = min(2 * pause, _LONGEST_PAUSE)
    yield 0.0


def _is_final(error: Exception) -> bool:
    """Whether a server has answered that it will not give the file, now or later."""
    status = getattr(error, "status", None)  # of aiohttp's errors
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUS
    return refused or isinstance(error, FileNotFoundError | PermissionError)


def _open(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it)."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        return url_to_fs(url)
    except ImportError as error:
        package = getattr(error.__cause__ or error, "name", None) or f"that fsspec uses for {protocol}"
        raise UserError(
            f"Reading {protocol}:// needs the package {package}, which is not installed; pip install {package}."
        ) from error
    except ValueError as error:
        raise UserError(f"{url} cannot be read ({error}); use s3://, gs://, https:// or hf://.") from error


def _unreachable(url: str, error: Exception) -> UserError:
    return UserError(
        f"{without_query(url)} cannot be fetched ({type(error).__name__}: {error}); "
        "check the address, the network and your access."
    )
