"""The bounded cache of fetched shards: room, recency, several processes, deaths in the middle, damaged entries."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from shard_files import shard_bytes

from vlmkit.data.disk_cache import locked
from vlmkit.data.samples import BadSample
from vlmkit.data.shards.shard_cache import ShardCache
from vlmkit.data.shards.shard_table import tabulate_shard
from vlmkit.errors import UserError

SHARDS = [shard_bytes(shard, 2 + shard % 3) for shard in range(12)]
SIZES = np.array([len(shard) for shard in SHARDS])
LARGEST = int(SIZES.max())


class Remote:
    """Counts what is fetched; may be slow or fail."""

    def __init__(self, pause: float = 0.0) -> None:
        self.fetched: Counter[int] = Counter()
        self.pause = pause
        self.before: Callable[[int], None] = lambda shard: None

    def __call__(self, shard: int, path: Path) -> np.ndarray:
        self.fetched[shard] += 1
        self.before(shard)
        time.sleep(self.pause)
        path.write_bytes(SHARDS[shard])
        return tabulate_shard(path, str(shard), False)


def cache(tmp_path: Path, remote: Remote, shards: int = 12) -> ShardCache:
    """A cache with room for this many shards."""
    return ShardCache(tmp_path / "shards", SIZES, shards * LARGEST, remote)


def first_image(shards: ShardCache, shard: int) -> bytes:
    row = shards.rows(shard)[0]
    return shards.read(shard, int(row["image_offset"]), int(row["image_size"]))


def present(tmp_path: Path) -> set[int]:
    return {int(path.stem) for path in (tmp_path / "shards").glob("*.tar")}


def age(tmp_path: Path, seconds: float) -> None:
    """Let time pass for what is there."""
    for path in (tmp_path / "shards").glob("*.tar"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def test_a_shard_is_fetched_once(tmp_path: Path) -> None:
    remote = Remote()
    shards = cache(tmp_path, remote)
    for _ in range(3):
        assert [first_image(shards, shard) for shard in range(12)] == [f"{shard}/0".encode() for shard in range(12)]
    assert len(shards.rows(4)) == 3
    assert set(remote.fetched.values()) == {1}
    again = Remote()
    assert first_image(cache(tmp_path, again), 3) == b"3/0"
    assert not again.fetched


def test_the_cache_stays_within_its_limit_and_drops_the_least_recently_read(tmp_path: Path) -> None:
    remote = Remote()
    shards = cache(tmp_path, remote, 4)
    for shard in (0, 1, 2, 3):
        first_image(shards, shard)
        age(tmp_path, 60)
    first_image(shards, 0)  # so that 1 is now the one that was read the longest time ago
    first_image(shards, 4)
    assert present(tmp_path) & {0, 1, 4} == {0, 4}
    for shard in np.random.default_rng(0).integers(0, 12, 40).tolist():
        assert first_image(shards, shard) == f"{shard}/0".encode()
        assert sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar")) <= 4 * LARGEST
    tables = {int(path.stem) for path in (tmp_path / "shards").glob("*.npy")}
    assert tables == present(tmp_path)


def test_a_removed_shard_takes_no_space_although_it_was_read(tmp_path: Path) -> None:
    shards = cache(tmp_path, Remote(), 2)
    for shard in range(12):
        first_image(shards, shard)
    descriptors = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [name for name in descriptors if str(tmp_path) in name]


def test_what_is_wanted_ahead_is_there_when_it_is_read(tmp_path: Path) -> None:
    remote = Remote()
    shards = cache(tmp_path, remote)
    shards.fetch_ahead([5, 7, 2])
    deadline = time.monotonic() + 10
    while present(tmp_path) != {2, 5, 7} and time.monotonic() < deadline:
        time.sleep(0.01)
    assert remote.fetched == {2: 1, 5: 1, 7: 1}
    for shard in (5, 7, 2):
        first_image(shards, shard)
    assert sum(remote.fetched.values()) == 3


def test_later_wishes_replace_earlier_ones(tmp_path: Path) -> None:
    remote = Remote(pause=0.05)
    shards = cache(tmp_path, remote)
    shards.fetch_ahead(range(12))
    shards.fetch_ahead([11])
    deadline = time.monotonic() + 10
    while 11 not in present(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert remote.fetched[11] == 1
    assert len(remote.fetched) <= 6  # four threads had begun


def test_a_failure_in_the_background_is_left_to_whoever_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote()

    def fail(shard: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise UserError("no network")

    remote.before = fail
    shards = cache(tmp_path, remote)
    shards.fetch_ahead([1])
    deadline = time.monotonic() + 10
    while "no network" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert first_image(shards, 1) == b"1/0"
    assert remote.fetched[1] == 2


def test_a_failed_fetch_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    remote = Remote()

    def fail(shard: int) -> None:
        raise UserError("no network")

    remote.before = fail
    shards = cache(tmp_path, remote, 1)
    for _ in range(2):
        with pytest.raises(UserError, match="no network"):
            first_image(shards, 1)
    assert not list((tmp_path / "shards").glob("*.part")) and not present(tmp_path)
    remote.before = lambda shard: None
    assert first_image(shards, 1) == b"1/0"


@pytest.mark.parametrize("damage", ["cut", "empty", "table", "no table"])
def test_a_damaged_entry_is_fetched_again(tmp_path: Path, damage: str) -> None:
    first_image(cache(tmp_path, Remote()), 6)
    entry = tmp_path / "shards" / "000006.tar"
    if damage in ("cut", "empty"):
        os.truncate(entry, 700 if damage == "cut" else 0)
    elif damage == "table":
        entry.with_suffix(".npy").write_bytes(b"\x93NUMPY broken")
    else:
        entry.with_suffix(".npy").unlink()
        entry.unlink()
    remote = Remote()
    assert first_image(cache(tmp_path, remote), 6) == b"6/0"
    assert remote.fetched == {6: 1}


def test_an_entry_that_vanishes_between_reads_is_fetched_again(tmp_path: Path) -> None:
    remote = Remote()
    shards = cache(tmp_path, remote)
    first_image(shards, 6)
    (tmp_path / "shards" / "000006.tar").unlink()
    assert first_image(shards, 6) == b"6/0"
    assert remote.fetched == {6: 2}


def test_reading_beyond_the_end_is_a_bad_sample(tmp_path: Path) -> None:
    with pytest.raises(BadSample, match="shard 1 ends before"):
        cache(tmp_path, Remote()).read(1, int(SIZES[1]) - 5, 10)


def test_a_copy_in_another_process_uses_the_same_folder(tmp_path: Path) -> None:
    shards = cache(tmp_path, Remote())
    shards.fetch_ahead([1])
    first_image(shards, 1)
    copy = pickle.loads(pickle.dumps(cache(tmp_path, _module_level)))  # type: ignore[arg-type]
    assert first_image(copy, 1) == b"1/0"


def _module_level(shard: int, path: Path) -> np.ndarray:
    raise AssertionError("fetched again")


def test_many_processes_fetch_each_shard_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_read_all, args=(tmp_path, 12, seed)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted((tmp_path / "log").read_text().split()) == sorted(str(shard) for shard in range(12))


def test_many_processes_share_a_cache_that_is_too_small_for_all_they_read(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_read_all, args=(tmp_path, 5, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        entries = list((tmp_path / "shards").iterdir()) if (tmp_path / "shards").exists() else []
        assert sum(_size(path) for path in entries if path.suffix in (".tar", ".part")) <= 5 * LARGEST
        time.sleep(0.005)
    assert [worker.exitcode for worker in workers] == [0] * 3


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_all(tmp_path: Path, room: int, seed: int) -> None:
    remote = Remote(pause=0.01)

    def note(shard: int) -> None:
        with (tmp_path / "log").open("a") as log:
            log.write(f"{shard}\n")

    remote.before = note
    shards = cache(tmp_path, remote, room)
    for shard in np.random.default_rng(seed).permutation(12).tolist():
        assert first_image(shards, shard) == f"{shard}/0".encode()


def test_a_killed_fetch_is_cleared_away(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    victim = context.Process(target=_die_while_fetching, args=(tmp_path,))
    victim.start()
    part = tmp_path / "shards" / f"000003.{SIZES[3]}.part"
    deadline = time.monotonic() + 10
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert part.exists()
    part.with_suffix(".rows").touch()
    shards = cache(tmp_path, Remote(), 1)  # room for one shard: what the dead process reserved must not count
    assert first_image(shards, 5) == b"5/0"
    assert not part.exists() and not part.with_suffix(".rows").exists()
    assert first_image(shards, 3) == b"3/0"


def _die_while_fetching(tmp_path: Path) -> None:
    first_image(cache(tmp_path, Remote(pause=60)), 3)


@pytest.mark.parametrize("shard", [0, 64])
def test_a_process_forked_during_a_fetch_holds_up_nobody(tmp_path: Path, shard: int) -> None:
    """It has the lock's file open, and shard 64 has the lock of shard 0; the loaders of validation are such forks."""
    sizes = np.full(65, SIZES[0])
    begun, go_on = threading.Event(), threading.Event()

    def fetch(number: int, path: Path) -> np.ndarray:
        if number == 0 and threading.current_thread() is not threading.main_thread():
            begun.set()
            go_on.wait(10)
        path.write_bytes(SHARDS[0])
        return tabulate_shard(path, str(number), False)

    shards = ShardCache(tmp_path / "shards", sizes, 100 * LARGEST, fetch)
    shards.fetch_ahead([0])
    assert begun.wait(10)
    child = multiprocessing.get_context("fork").Process(target=shards.rows, args=(shard,))
    child.start()
    go_on.set()
    child.join(10)
    stuck = child.is_alive()
    child.kill()
    child.join()
    assert not stuck and (tmp_path / "shards" / f"{shard:06d}.tar").exists()


def test_a_fetch_waits_for_room_that_others_are_about_to_give(tmp_path: Path) -> None:
    """While another process fetches, what it reserved counts; when it is done, its shard can be removed."""
    remote = Remote()
    shards = cache(tmp_path, remote, 1)
    reserved = tmp_path / "shards" / f"000004.{SIZES[4]}.part"
    reserved.touch()
    results: list[bytes] = []
    with locked(tmp_path / "shards" / "fetch-4.lock"):
        thread = threading.Thread(target=lambda: results.append(first_image(shards, 5)))
        thread.start()
        time.sleep(0.5)
        assert not remote.fetched
    thread.join(10)
    assert results == [b"5/0"]
