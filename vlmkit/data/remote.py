"""Files behind URLs, through fsspec: ``s3://``, ``gs://``, ``https://``, ``hf://`` and whatever else it knows."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

from vlmkit.data.disk_cache import disk_full
from vlmkit.errors import UserError

_ATTEMPTS = 3
_GLOB = frozenset("*?[")


def is_remote(where: str) -> bool:
    """Whether ``where`` is a URL."""
    return "://" in where


def find_remote(url: str, suffix: str) -> list[str]:
    """The URLs of the files that ``url`` stands for, in order: those of a glob or a folder (may be none), or itself."""
    filesystem, path = _open(url)
    is_pattern = bool(_GLOB & set(path))
    if not is_pattern and path.endswith(suffix):
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


def read_remote(url: str) -> bytes | None:
    """The content of a small file; None if it is not there."""
    filesystem, path = _open(url)
    try:
        return bytes(filesystem.cat_file(path))
    except FileNotFoundError:
        return None
    except Exception as error:
        raise _unreachable(url, error) from error


def fetch(url: str, path: Path, size: int) -> None:
    """Write the file at ``url``, of ``size`` bytes, to ``path``; tries again where that may help, then UserError."""
    filesystem, remote_path = _open(url)
    for attempt in range(_ATTEMPTS):
        time.sleep(2**attempt - 1)
        try:
            filesystem.get_file(remote_path, str(path))
            if path.stat().st_size == size:
                return
            reason: Exception = OSError(f"{path.stat().st_size} bytes arrived where there should be {size}")
        except (FileNotFoundError, PermissionError) as error:
            raise _unreachable(url, error) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise disk_full(path.parent) from error
            reason = error
    raise _unreachable(url, reason) from reason


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
        f"{url} cannot be fetched ({type(error).__name__}: {error}); check the address, the network and your access."
    )
