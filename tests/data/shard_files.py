"""Small tar shards for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """A tar of these files, in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def shard_bytes(shard: int, samples: int) -> bytes:
    """A shard whose every sample says where it is: image ``b"SHARD/ROW"`` and caption ``"caption SHARD/ROW"``."""
    files = {}
    for row in range(samples):
        files[f"{row:05d}.jpg"] = f"{shard}/{row}".encode()
        files[f"{row:05d}.txt"] = f"caption {shard}/{row}".encode()
    return tar_bytes(files)
