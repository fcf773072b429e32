"""The index of local shards: made once, mapped, and no trouble when it cannot be kept; reading in place."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_files import shard_bytes, tar_bytes

from vlmkit.data.disk_cache import cache_folder
from vlmkit.data.samples import BadSample
from vlmkit.data.shards import shard_index
from vlmkit.data.shards.shard_index import LocalShards
from vlmkit.errors import UserError


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for shard, samples in enumerate((3, 5, 2)):
        (tmp_path / f"{shard}.tar").write_bytes(shard_bytes(shard, samples))
    return [tmp_path / f"{shard}.tar" for shard in range(3)]


def images(shards: LocalShards) -> list[bytes]:
    rows = [(shard, row) for shard in range(len(shards.shard_sizes)) for row in shards.rows(shard)]
    return [shards.read(shard, row["image_offset"], row["image_size"]) for shard, row in rows]


EXPECTED = [f"{shard}/{row}".encode() for shard, samples in enumerate((3, 5, 2)) for row in range(samples)]


def test_shards_are_read_in_order(paths: list[Path]) -> None:
    shards = LocalShards(paths)
    assert shards.shard_sizes.tolist() == [3, 5, 2]
    assert shards.num_pairs == 10
    assert images(shards) == EXPECTED


def test_the_index_is_made_once_and_follows_the_files(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []
    first = LocalShards(paths, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    with monkeypatch.context() as patch:
        patch.setattr(shard_index, "tabulate_shard", lambda *_: pytest.fail("scanned again"))
        again = LocalShards(paths)
    assert again.fingerprint == first.fingerprint
    assert images(again) == EXPECTED
    replacement = paths[1].with_suffix(".new")
    replacement.write_bytes(shard_bytes(7, 5))
    os.utime(replacement, ns=(0, 0))
    replacement.replace(paths[1])
    assert images(LocalShards(paths))[3] == b"7/0"


def test_another_order_or_choice_of_shards_is_another_index(paths: list[Path]) -> None:
    assert images(LocalShards(paths[::-1])) == [*EXPECTED[8:], *EXPECTED[3:8], *EXPECTED[:3]]
    assert len({LocalShards(chosen).fingerprint for chosen in (paths, paths[::-1], paths[:2])}) == 3


def test_a_damaged_index_is_made_again(paths: list[Path]) -> None:
    LocalShards(paths)
    (entry,) = (path for path in cache_folder("shard-index").iterdir() if path.is_dir())
    for name, content in (("header.json", b"{}"), ("header.json", b"\xff"), ("rows.bin", b"x"), ("rows.bin", b"")):
        (entry / name).write_bytes(content)
        assert images(LocalShards(paths)) == EXPECTED


def test_a_cache_that_cannot_be_written_is_no_harm(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "file" / "below"))
    shards = LocalShards(paths)
    assert images(shards) == EXPECTED
    assert images(pickle.loads(pickle.dumps(shards))) == EXPECTED


def test_an_interrupted_build_leaves_nothing(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalShards(paths, progress=interrupt)
    assert not [path for path in cache_folder("shard-index").iterdir() if path.is_dir()]
    assert images(LocalShards(paths)) == EXPECTED


def test_processes_that_open_the_same_shards_build_one_index(paths: list[Path], tmp_path: Path) -> None:
    count = tmp_path / "builds"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_open_and_count, args=(paths, count)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(worker.exitcode == 0 for worker in workers)
    assert count.read_text() == "built\n"


def _open_and_count(paths: list[Path], count: Path) -> None:
    def note(done: int, total: int) -> None:
        if done == total:
            with count.open("a") as file:
                file.write("built\n")

    assert images(LocalShards(paths, progress=note)) == EXPECTED


def test_shards_without_samples_and_copies_in_other_processes(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({}))
    shards = LocalShards([tmp_path / "a.tar"])
    assert shards.shard_sizes.tolist() == [0]
    assert len(pickle.loads(pickle.dumps(shards)).rows(0)) == 0


def test_a_copy_carries_no_rows(paths: list[Path]) -> None:
    copy = pickle.dumps(LocalShards(paths))
    assert len(copy) < 1000
    assert images(pickle.loads(copy)) == EXPECTED


def test_rows_are_mapped_not_read(paths: list[Path]) -> None:
    rows: Any = LocalShards(paths).rows(1)
    while rows.base is not None and not isinstance(rows, np.memmap):
        rows = rows.base
    assert isinstance(rows, np.memmap)


def test_missing_shard(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no readable shard at .*nowhere"):
        LocalShards([tmp_path / "nowhere.tar"])


def test_a_shard_that_shrinks_or_vanishes_gives_bad_samples(paths: list[Path]) -> None:
    shards = LocalShards(paths)
    last = shards.rows(1)[4]
    os.truncate(paths[1], int(last["image_offset"]) + 1)
    with pytest.raises(BadSample, match="shorter"):
        shards.read(1, int(last["image_offset"]), int(last["image_size"]))
    paths[2].unlink()
    with pytest.raises(BadSample, match="cannot be read"):
        shards.read(2, 512, 1)


def test_many_open_shards_leave_few_descriptors_behind(tmp_path: Path) -> None:
    paths = [tmp_path / f"{shard}.tar" for shard in range(150)]
    for shard, path in enumerate(paths):
        path.write_bytes(shard_bytes(shard, 1))
    shards = LocalShards(paths)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    assert images(shards) == [f"{shard}/0".encode() for shard in range(150)]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) - before <= 64
