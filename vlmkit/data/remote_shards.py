"""Tar shards behind URLs: a manifest tells what they hold, and they are fetched whole when they are needed."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmkit.data.disk_cache import cache_folder
from vlmkit.data.order import SampleOrder, WindowOrder, shards_per_window
from vlmkit.data.remote import fetch, is_remote, read_remote, remote_size
from vlmkit.data.shard_cache import FETCHES_AT_ONCE, ShardCache
from vlmkit.data.shard_index import Progress
from vlmkit.data.shard_table import combine_digests, digest_shard, is_pair, tabulate_shard
from vlmkit.errors import UserError

MANIFEST = "vlmkit-manifest.json"
"""A JSON object from each shard's path, relative to the manifest, to its ShardFacts as a list."""
DEFAULT_CACHE_GB = 20.0
WINDOW_ROWS = 2**16
"""Samples, at least, among which the order is shuffled: whole shards that are on the disk at the same time."""
WINDOWS_ON_DISK = 3
"""One that is read, one whose last batches are still on their way, and one that is fetched ahead."""

_SAVE_SECONDS = 30.0
_log = logging.getLogger(__name__)


class ShardFacts(NamedTuple):
    """What a manifest says of a shard: its length, samples, whole pairs among them, and the digest of its table."""

    bytes: int
    samples: int
    pairs: int
    digest: str


class RemoteShards:
    """Shards behind URLs, read through a bounded cache on this machine's disk.

    A manifest tells what the shards hold, so that opening them fetches none. It is ``manifest`` (path or URL), or else
    ``vlmkit-manifest.json`` in the folder that all shards lie in. Shards that it lacks are fetched once to be counted,
    and what was found is kept: in ``manifest`` if that is a path, else in the cache directory.

    Args:
        urls: the shards, in order.
        allow_truncated: use the whole samples of damaged shards.
        cache_gb: gigabytes of disk that fetched shards take up at most.
        manifest: where the manifest is.
        progress: hears how many shards are counted, where the manifest lacks some.

    Raises UserError if something cannot be reached or a shard is larger than the cache and, on use, if a shard is not
    what the manifest says.
    """

    def __init__(
        self,
        urls: Sequence[str],
        allow_truncated: bool = False,
        cache_gb: float = DEFAULT_CACHE_GB,
        manifest: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._urls, self._allow_truncated, self._cache_gb = tuple(urls), allow_truncated, cache_gb
        self._folder = _common_folder(urls)
        key = sha256("\n".join([str(allow_truncated), *urls]).encode()).hexdigest()
        directory = cache_folder("shards") / key[:32]
        own = directory / MANIFEST if manifest is None or is_remote(manifest) else Path(manifest).expanduser()

        known = _known_facts(manifest or f"{self._folder}/{MANIFEST}", own, required=manifest is not None)
        self._facts: Sequence[ShardFacts | None] = [known.get(self._path(url)) for url in urls]
        sizes = [facts.bytes if facts else remote_size(url) for facts, url in zip(self._facts, urls, strict=True)]
        self._sizes = np.array(sizes, np.int64)
        if max(sizes) > cache_gb * 1e9:
            raise UserError(f"A shard of {self._folder} has {max(sizes)} bytes; make room for several with ?cache_gb=.")
        self._cache = ShardCache(directory, self._sizes, int(cache_gb * 1e9), self._fetch)
        self._facts = self._count_missing(own, progress)
        self.shard_sizes = np.array([facts.samples for facts in self._facts], np.int64)
        self.num_pairs = sum(facts.pairs for facts in self._facts)
        self.fingerprint = combine_digests(facts.digest for facts in self._facts)

    def name(self, shard: int) -> str:
        """What users know the shard by."""
        return self._urls[shard]

    def rows(self, shard: int) -> np.ndarray:
        """The shard's table, of type ROW."""
        return self._cache.rows(shard)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes of the shard from ``offset``."""
        return self._cache.read(shard, offset, size)

    def order(self, seed: int) -> SampleOrder:
        """Windows of shards, fetched ahead of their use. Raises UserError if the cache cannot hold enough of them."""
        window = shards_per_window(self.shard_sizes, WINDOW_ROWS)
        needed = min(int(self._sizes.sum()), (WINDOWS_ON_DISK * window + 1) * int(self._sizes.max())) / 1e9
        if needed > self._cache_gb:
            raise UserError(
                f"The samples of {self._folder} are shuffled in windows of {window} shards, {WINDOWS_ON_DISK} of which "
                f"must fit on the disk, but cache_gb is {self._cache_gb:g}; set it to {math.ceil(needed * 10) / 10:g}."
            )
        return WindowOrder(self.shard_sizes, seed, WINDOW_ROWS, self._cache.fetch_ahead)

    def _path(self, url: str) -> str:
        return url.removeprefix(self._folder).lstrip("/")

    def _fetch(self, shard: int, path: Path) -> np.ndarray:
        url, facts = self._urls[shard], self._facts[shard]
        fetch(url, path, int(self._sizes[shard]))
        rows = tabulate_shard(path, url, self._allow_truncated)
        if facts and facts.digest != digest_shard(url, rows):
            raise UserError(
                f"{url} is not the shard that its manifest describes; remove the manifest to have it redone."
            )
        return rows

    def _count_missing(self, own: Path, progress: Progress | None) -> list[ShardFacts]:
        """The facts of all shards; those that were not known are counted and saved."""
        facts = {shard: known for shard, known in enumerate(self._facts) if known is not None}
        missing = [shard for shard in range(len(self._urls)) if shard not in facts]
        if not missing:
            return list(facts.values())
        pool = ThreadPoolExecutor(FETCHES_AT_ONCE)
        saved = time.monotonic()
        try:
            for shard, rows in zip(missing, pool.map(self._cache.rows, missing), strict=True):
                digest = digest_shard(self._urls[shard], rows)
                facts[shard] = ShardFacts(int(self._sizes[shard]), len(rows), int(is_pair(rows).sum()), digest)
                if progress is not None:
                    progress(len(facts), len(self._urls))
                if time.monotonic() - saved > _SAVE_SECONDS:
                    self._save(own, facts)
                    saved = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            self._save(own, facts)
        _log.info("counted the samples of %d shards; %s, copied beside them, spares others that", len(missing), own)
        return [facts[shard] for shard in range(len(self._urls))]

    def _save(self, path: Path, facts: Mapping[int, ShardFacts]) -> None:
        content = {self._path(self._urls[shard]): facts[shard] for shard in sorted(facts)}
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
            unfinished.replace(path)
        except OSError as error:
            raise UserError(f"The manifest {path} cannot be written ({error.strerror}); name another place.") from error


def _known_facts(manifest: str, own: Path, required: bool) -> dict[str, ShardFacts]:
    """What the manifest and the one this machine keeps say together; the latter need not exist."""
    facts: dict[str, ShardFacts] = {}
    for where in dict.fromkeys([manifest, str(own)]):
        if is_remote(where):
            content = read_remote(where)
            if content is None and required:
                raise UserError(
                    f"There is no manifest at {where}; correct it, or leave it out to have the shards counted."
                )
        else:
            path = Path(where).expanduser()
            content = path.read_bytes() if path.is_file() else None
        if content is not None:
            facts |= _parse_manifest(content, where)
    return facts


def _parse_manifest(content: bytes, where: str) -> dict[str, ShardFacts]:
    try:
        parsed = {str(name): ShardFacts(*facts) for name, facts in json.loads(content).items()}
        if all(map(_plausible, parsed.values())):
            return parsed
    except (ValueError, TypeError, AttributeError):
        pass
    raise UserError(f"{where} is not a manifest of shards; remove it to have it made anew.")


def _plausible(facts: ShardFacts) -> bool:
    return all(isinstance(count, int) for count in facts[:-1]) and isinstance(facts.digest, str)


def _common_folder(urls: Sequence[str]) -> str:
    """The folder that all URLs lie in, at some depth."""
    levels = zip(*(url.split("/")[:-1] for url in urls), strict=False)
    return "/".join(level[0] for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels))
