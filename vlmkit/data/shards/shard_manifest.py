"""Manifests: what a set of tar shards holds, written down so that opening the set reads none of them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from vlmkit.data.patterns import find_paths
from vlmkit.data.remote import is_remote, read_remote
from vlmkit.data.shards.shard_index import LocalShards, Progress
from vlmkit.data.shards.shard_table import digest_shard, is_pair
from vlmkit.errors import UserError

MANIFEST = "vlmkit-manifest.json"
"""A JSON object from each shard's path, relative to the manifest, to its ShardFacts as a list."""


class ShardFacts(NamedTuple):
    """What a manifest says of a shard: its length, samples, whole pairs among them, and the digest of its table.

    Who writes a manifest without having read the shards leaves out the digest, and the length may be null.
    """

    bytes: int | None
    samples: int
    pairs: int
    digest: str | None = None

    def identify(self, name: str) -> str:
        """What stands for the shard of this name in the fingerprint of the set: the digest, or else the counts."""
        return self.digest or sha256(f"{name.rpartition('/')[2]} {self.samples} {self.pairs}".encode()).hexdigest()


def write_manifest(pattern: str, file: str | None = None, progress: Progress | None = None) -> Path:
    """Write the manifest of shards on a local disk, to be copied to where they are read from; returns its path.

    ``pattern`` is a tar, a directory of them, or a glob. Without ``file``, the manifest is ``vlmkit-manifest.json`` in
    the folder that all shards lie in. Raises UserError if there are no shards, one is damaged, or it cannot be written.
    """
    if is_remote(pattern):
        raise UserError(f"{pattern} is remote; its manifest is written when it is opened, to ?manifest=FILE.")
    paths = find_paths(pattern, ".tar")
    if not paths:
        raise UserError(f"No shards found at {pattern}; give a .tar, a directory of them, or a pattern that matches.")
    shards = LocalShards([Path(path) for path in paths], progress=progress)
    folder = common_folder(paths)
    facts = {}
    for shard, path in enumerate(paths):
        rows = shards.rows(shard)
        size, pairs = Path(path).stat().st_size, int(is_pair(rows).sum())
        facts[relative_to(path, folder)] = ShardFacts(size, len(rows), pairs, digest_shard(path, rows))
    written = Path(file).expanduser() if file else Path(folder) / MANIFEST
    save_manifest(written, facts)
    return written


def save_manifest(path: Path, facts: Mapping[str, ShardFacts]) -> None:
    """Write a manifest, whole or not at all. Raises UserError if that cannot be."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(facts, indent=0) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"The manifest {path} cannot be written ({error.strerror}); name another place.") from error


def known_facts(manifest: str, own: Path, required: bool) -> dict[str, ShardFacts]:
    """What ``manifest`` says, and of other shards what this machine has kept in ``own``, which need not exist.

    Raises UserError if one of them is damaged, or ``manifest`` is a URL, ``required`` and not there.
    """
    facts: dict[str, ShardFacts] = {}
    for where in dict.fromkeys([manifest, str(own)]):
        if is_remote(where):
            content = read_remote(where, required)
            if content is None and required:
                raise UserError(
                    f"There is no manifest at {where}; correct it, or leave it out to have the shards counted."
                )
        else:
            path = Path(where).expanduser()
            content = path.read_bytes() if path.is_file() else None
        if content is not None:
            facts = _parse(content, where) | facts
    return facts


def common_folder(paths: Sequence[str]) -> str:
    """The folder that all paths or URLs lie in, at some depth."""
    levels = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    return "/".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))


def relative_to(path: str, folder: str) -> str:
    """What a manifest in ``folder`` calls the shard at ``path``."""
    return path.removeprefix(folder).lstrip("/")


def _parse(content: bytes, where: str) -> dict[str, ShardFacts]:
    try:
        parsed = {str(name): ShardFacts(*facts) for name, facts in json.loads(content).items()}
        if all(map(_plausible, parsed.values())):
            return parsed
    except (ValueError, TypeError, AttributeError):
        pass
    raise UserError(f"{where} is not a manifest of shards; remove it to have it made anew.")


def _plausible(facts: ShardFacts) -> bool:
    counts = [facts.samples, facts.pairs] if facts.bytes is None else facts[:3]
    return all(isinstance(count, int) and count >= 0 for count in counts) and isinstance(facts.digest, str | None)
