"""Tar shards behind URLs: a manifest tells what they hold, and they are fetched whole when they are needed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np

from vlmkit.data.disk_cache import cache_folder
from vlmkit.data.order import SampleOrder, WindowOrder, shards_per_window
from vlmkit.data.remote import PATIENCE, fetch, is_remote, remote_size, without_query
from vlmkit.data.shards.shard_cache import FETCHES_AT_ONCE, ShardCache
from vlmkit.data.shards.shard_index import Progress
from vlmkit.data.shards.shard_manifest import (
    MANIFEST,
    ShardFacts,
    common_folder,
    known_facts,
    relative_to,
    save_manifest,
)
from vlmkit.data.shards.shard_table import combine_digests, digest_shard, is_pair, tabulate_shard
from vlmkit.errors import UserError

DEFAULT_CACHE_GB = 20.0
WINDOW_ROWS = 2**16
"""Samples, at least, among which the order is shuffled: whole shards that are on the disk at the same time."""
OPENING_PATIENCE = 5.0
"""Seconds that fetching is tried for while somebody waits for the set to open; PATIENCE once it is read."""
WINDOWS_ON_DISK = 3
"""One that is read, one whose last batches are still on their way, and one that is fetched ahead."""

_QUESTIONS_AT_ONCE = 32
_SAVE_SECONDS = 30.0
_log = logging.getLogger(__name__)


class RemoteShards:
    """Shards behind URLs, read through a bounded cache on this machine's disk.

    A manifest tells what the shards hold, so that opening them fetches none. It is ``manifest`` (path or URL), or else
    ``vlmkit-manifest.json`` in the folder that all shards lie in. Shards that it lacks are fetched once to be counted,
    and what was found is kept: in ``manifest`` if that is a path, else in the cache directory. The queries of URLs
    (``?token=...``) are part of no name, so that another one may stand there the next time.

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
        self._names = [without_query(url) for url in urls]
        self._folder = common_folder(self._names)
        key = sha256("\n".join([str(allow_truncated), *self._names]).encode()).hexdigest()
        directory = cache_folder("shards") / key[:32]
        own = directory / MANIFEST if manifest is None or is_remote(manifest) else Path(manifest).expanduser()

        known = known_facts(manifest or f"{self._folder}/{MANIFEST}", own, required=manifest is not None)
        self._facts: Sequence[ShardFacts | None] = [known.get(relative_to(name, self._folder)) for name in self._names]
        self._patience = OPENING_PATIENCE
        self._sizes = self._find_sizes()
        largest = int(self._sizes.max())
        if largest > cache_gb * 1e9:
            raise UserError(f"A shard of {self._folder} has {largest} bytes; make room for several with ?cache_gb=.")
        self._cache = ShardCache(directory, self._sizes, int(cache_gb * 1e9), self._fetch)
        self._facts = self._count_missing(own, progress)
        self.shard_sizes = np.array([facts.samples for facts in self._facts], np.int64)
        self.num_pairs = sum(facts.pairs for facts in self._facts)
        self.fingerprint = combine_digests(map(ShardFacts.identify, self._facts, self._names))
        self._patience = PATIENCE

    def name(self, shard: int) -> str:
        """What users know the shard by."""
        return self._names[shard]

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

    def _find_sizes(self) -> np.ndarray:
        """Bytes of each shard; where no manifest tells, the servers are asked."""
        sizes = [facts.bytes if facts else None for facts in self._facts]
        with ThreadPoolExecutor(_QUESTIONS_AT_ONCE) as pool:
            asked = pool.map(remote_size, [url for url, size in zip(self._urls, sizes, strict=True) if size is None])
            return np.array([next(asked) if size is None else size for size in sizes], np.int64)

    def _fetch(self, shard: int, path: Path) -> np.ndarray:
        name, facts = self._names[shard], self._facts[shard]
        fetch(self._urls[shard], path, int(self._sizes[shard]), self._patience)
        rows = tabulate_shard(path, name, self._allow_truncated)
        if facts and (len(rows) != facts.samples or facts.digest not in (None, digest_shard(name, rows))):
            raise UserError(
                f"{name} is not the shard that its manifest describes; remove the manifest to have it redone."
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
                digest = digest_shard(self._names[shard], rows)
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
        save_manifest(path, {relative_to(self._names[shard], self._folder): facts[shard] for shard in sorted(facts)})
