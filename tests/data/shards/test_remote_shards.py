"""Shards behind URLs: what they stand for, manifests, fetching ahead in training, and everything that can go wrong.

The URLs are ``memory://`` (in this process) and ``file://``; nothing here touches a network.
"""

from __future__ import annotations

import json
import pickle
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from shard_files import shard_bytes, tar_bytes

from vlmkit.contracts import Batch
from vlmkit.data import remote
from vlmkit.data.loader import Stream
from vlmkit.data.order import order_of
from vlmkit.data.remote import fetch, find_remote, read_remote, without_query
from vlmkit.data.shards import remote_shards, shard_manifest
from vlmkit.data.shards.shard_manifest import MANIFEST, write_manifest
from vlmkit.data.shards.shards import ShardCaptions
from vlmkit.data.sources.opener import open_captions
from vlmkit.errors import UserError

SAMPLES = [3, 5, 2, 4, 6, 1, 3, 3]
FOLDER = "memory://bucket/set"


class Traffic(Counter[str]):
    """Files fetched from memory://, by name."""


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
    """Eight shards in memory://bucket/set."""
    files = fsspec.filesystem("memory")
    for shard, samples in enumerate(SAMPLES):
        files.pipe(f"/bucket/set/{shard:02d}.tar", shard_bytes(shard, samples))
    traffic = Traffic()
    get_file = type(files).get_file

    def counting(self: Any, path: str, local: str, **options: Any) -> None:
        traffic[path.rpartition("/")[2]] += 1
        get_file(self, path, local, **options)

    monkeypatch.setattr(type(files), "get_file", counting)
    yield traffic
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def images(source: Any) -> list[bytes]:
    return [source[index].image for index in range(len(source))]


EXPECTED = [f"{shard}/{row}".encode() for shard, samples in enumerate(SAMPLES) for row in range(samples)]


@pytest.mark.parametrize("where", ["/{00..07}.tar", "/*.tar", "", "/", "/0[0-7].tar", "/{00,01}.tar"])
def test_patterns(memory: Traffic, where: str) -> None:
    source = open_captions(f"wds:{FOLDER}{where}")
    assert images(source) == (EXPECTED[:8] if "," in where else EXPECTED)
    assert source[4].captions == source.captions_only(4) == ("caption 1/1",)
    assert set(memory.values()) == {1}


def test_files_behind_a_url_equal_local_ones(tmp_path: Path) -> None:
    for shard, samples in enumerate(SAMPLES):
        (tmp_path / f"{shard}.tar").write_bytes(shard_bytes(shard, samples))
    local, behind_url = open_captions(f"wds:{tmp_path}"), open_captions(f"wds:file://{tmp_path}")
    assert images(behind_url) == images(local) == EXPECTED
    assert behind_url.fingerprint == local.fingerprint


def test_opening_again_fetches_nothing(memory: Traffic) -> None:
    heard: list[tuple[int, int]] = []
    first = open_captions(f"wds:{FOLDER}", lambda done, total: heard.append((done, total)))
    assert heard == [(number, 8) for number in range(1, 9)]
    memory.clear()
    again = open_captions(f"wds:{FOLDER}", lambda done, total: pytest.fail("counted again"))
    assert not memory
    assert again.fingerprint == first.fingerprint
    assert len(again) == len(EXPECTED)


def test_a_manifest_beside_the_shards_spares_the_first_pass(
    memory: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_captions(f"wds:{FOLDER}?manifest={tmp_path}/manifest.json")
    content = (tmp_path / "manifest.json").read_bytes()
    assert json.loads(content)["03.tar"][1:3] == [4, 4]
    fsspec.filesystem("memory").pipe(f"/bucket/set/{MANIFEST}", content)
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "another machine"))
    memory.clear()
    source = open_captions(f"wds:{FOLDER}")
    assert not memory
    assert source.fingerprint == made.fingerprint
    assert source[4].image == b"1/1"
    assert memory == {"01.tar": 1}


def test_a_manifest_written_beside_local_shards(memory: Traffic, tmp_path: Path) -> None:
    for shard, samples in enumerate(SAMPLES):
        (tmp_path / f"{shard:02d}.tar").write_bytes(shard_bytes(shard, samples))
    written = write_manifest(str(tmp_path))
    assert written == tmp_path / MANIFEST
    fsspec.filesystem("memory").pipe(f"/bucket/set/{MANIFEST}", written.read_bytes())
    source = open_captions(f"wds:{FOLDER}")
    assert not memory
    assert source.fingerprint == open_captions(f"wds:{tmp_path}").fingerprint
    assert write_manifest(f"{tmp_path}/0[01].tar", f"{tmp_path}/other.json") == tmp_path / "other.json"
    assert list(json.loads((tmp_path / "other.json").read_text())) == ["00.tar", "01.tar"]
    for where, message in ((FOLDER, "is remote"), (f"{tmp_path}/x*.tar", "No shards found")):
        with pytest.raises(UserError, match=message):
            write_manifest(where)


def test_a_manifest_by_hand_has_counts_alone(memory: Traffic, tmp_path: Path) -> None:
    counts = {f"{shard:02d}.tar": [None, samples, samples] for shard, samples in enumerate(SAMPLES)}
    counts["00.tar"][0] = len(shard_bytes(0, SAMPLES[0]))
    counts["07.tar"][1:] = [SAMPLES[7] + 1] * 2
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps(counts))
    source = open_captions(f"wds:{FOLDER}?manifest={manifest}")
    assert not memory
    assert [source[index].image for index in range(len(EXPECTED) - SAMPLES[7])] == EXPECTED[: -SAMPLES[7]]
    with pytest.raises(UserError, match=r"07\.tar is not the shard that its manifest describes"):
        source[len(EXPECTED) - 1]
    counts["07.tar"][1:] = [SAMPLES[7]] * 2
    manifest.write_text(json.dumps(counts))
    assert open_captions(f"wds:{FOLDER}?manifest={manifest}").fingerprint != source.fingerprint


def test_sizes_are_asked_for_several_at_a_time(memory: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4, timeout=10)
    ask = remote_shards.remote_size

    def slow(url: str) -> int:
        together.wait()
        return ask(url)

    monkeypatch.setattr(remote_shards, "remote_size", slow)
    assert images(open_captions(f"wds:{FOLDER}")) == EXPECTED


def test_a_manifest_that_lacks_shards_is_completed(memory: Traffic, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    open_captions(f"wds:{FOLDER}?manifest={manifest}")
    content = json.loads(manifest.read_text())
    assert list(content) == [f"{shard:02d}.tar" for shard in range(8)]
    manifest.write_text(json.dumps({name: content[name] for name in ("00.tar", "05.tar")}))
    heard: list[tuple[int, int]] = []
    source = open_captions(f"wds:{FOLDER}?manifest={manifest}", lambda done, total: heard.append((done, total)))
    assert heard[0] == (3, 8)
    assert json.loads(manifest.read_text()) == content
    assert images(source) == EXPECTED


def test_counting_goes_on_where_it_was_interrupted(memory: Traffic, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_captions(f"wds:{FOLDER}?manifest={manifest}", interrupt)
    assert len(json.loads(manifest.read_text())) == 3
    heard: list[int] = []
    open_captions(f"wds:{FOLDER}?manifest={manifest}", lambda done, total: heard.append(done))
    assert heard == [4, 5, 6, 7, 8]


def test_shards_in_several_folders(memory: Traffic, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for name in ("a", "b"):
        files.pipe(f"/bucket/two/{name}/0.tar", shard_bytes(ord(name), 2))
    manifest = tmp_path / "manifest.json"
    source = open_captions(f"wds:memory://bucket/two/{{a,b}}/0.tar?manifest={manifest}")
    assert images(source) == [b"97/0", b"97/1", b"98/0", b"98/1"]
    assert list(json.loads(manifest.read_text())) == ["a/0.tar", "b/0.tar"]


# --- training ---------------------------------------------------------------------------------------------------------


def load_from(source: Any) -> Any:
    return lambda index, epoch: (source[index].image, epoch)


def collate(items: Any) -> Batch:
    return {"items": list(items)}


def room_for(shards: int) -> float:
    """cache_gb for so many of the largest shards."""
    return shards * max(len(shard_bytes(0, samples)) for samples in SAMPLES) / 1e9


def test_training_goes_by_windows_and_fetches_each_shard_once_an_epoch(
    memory: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_shards, "WINDOW_ROWS", 4)  # two shards of 3.4 samples
    source = open_captions(f"wds:{FOLDER}?cache_gb={room_for(7):.9f}")
    memory.clear()
    (cached,) = remote_shards.cache_folder("shards").glob("*")
    for entry in cached.glob("*.tar"):
        entry.unlink()
    stream = Stream(load_from(source), source, collate, global_batch_size=9, seed=1)
    batches = stream.steps(0)
    seen = [item for _ in range(3) for item in next(batches)[0]["items"]]
    assert sorted(image for image, epoch in seen if epoch == 0) == sorted(EXPECTED)
    assert max(memory.values()) == 1
    assert sum(path.stat().st_size for path in cached.glob("*.tar")) <= room_for(7) * 1e9


@pytest.mark.parametrize(("world_size", "num_workers", "start"), [(2, 0, 0), (4, 0, 3), (1, 2, 5), (2, 1, 1)])
def test_training_is_the_same_for_ranks_workers_and_resumption(
    memory: Traffic, monkeypatch: pytest.MonkeyPatch, world_size: int, num_workers: int, start: int
) -> None:
    monkeypatch.setattr(remote_shards, "WINDOW_ROWS", 4)
    source = open_captions(f"wds:{FOLDER}")

    def steps(world_size: int, num_workers: int, start: int, count: int) -> list[Any]:
        ranks = [
            Stream(
                load_from(source),
                source,
                collate,
                global_batch_size=8,
                seed=1,
                rank=rank,
                world_size=world_size,
                num_workers=num_workers,
            ).steps(8 * start)
            for rank in range(world_size)
        ]
        batches = [[next(rank)[0]["items"] for rank in ranks] for _ in range(count)]
        return [[item for group in zip(*step, strict=True) for item in group] for step in batches]

    assert steps(world_size, num_workers, start, 3) == steps(1, 0, 0, start + 3)[start:]


def test_the_order_does_not_depend_on_the_room(memory: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_shards, "WINDOW_ROWS", 4)
    keys = [
        list(order_of(open_captions(f"wds:{FOLDER}?cache_gb={gigabytes}"), 1).slice(0, 50)) for gigabytes in (1, 0.001)
    ]
    assert keys[0] == keys[1]


def test_a_cache_that_cannot_hold_what_is_shuffled_together_is_refused(
    memory: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_shards, "WINDOW_ROWS", 4)
    source = open_captions(f"wds:{FOLDER}?cache_gb={room_for(3):.9f}")
    assert images(source) == EXPECTED  # good enough to read in order
    with pytest.raises(UserError, match=r"windows of 2 shards, 3 of which must fit .*; set it to 0\.1"):
        order_of(source, 0)
    with pytest.raises(UserError, match=r"A shard of memory:/+bucket/set has \d+ bytes; make room .*\?cache_gb="):
        open_captions(f"wds:{FOLDER}?cache_gb=0.000001")


def test_remote_sources_pickle(memory: Traffic) -> None:
    source = open_captions(f"wds:{FOLDER}")
    order_of(source, 0)
    copy = pickle.loads(pickle.dumps(source))
    assert images(copy) == EXPECTED


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_nothing_there(memory: Traffic) -> None:
    with pytest.raises(UserError, match="No shards found at memory://bucket/nothing"):
        open_captions("wds:memory://bucket/nothing/*.tar")
    with pytest.raises(UserError, match=r"memory://bucket/set/99\.tar cannot be fetched \(FileNotFoundError"):
        open_captions(f"wds:{FOLDER}/99.tar")
    with pytest.raises(UserError, match=r"There is no manifest at memory://bucket/m\.json"):
        open_captions(f"wds:{FOLDER}?manifest=memory://bucket/m.json")


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"00.tar": [1, 2]}', b'{"00.tar": [1, null, 1]}', b'{"00.tar": ["a", 1, 1, "d"]}', b"\xff"],
)
def test_manifests_that_are_none(memory: Traffic, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(UserError, match=r"m\.json is not a manifest of shards; remove it"):
        open_captions(f"wds:{FOLDER}?manifest={tmp_path}/m.json")


def test_a_shard_that_changed_since_its_manifest(memory: Traffic, tmp_path: Path) -> None:
    spec = f"wds:{FOLDER}?manifest={tmp_path}/m.json"
    open_captions(spec)
    facts = json.loads((tmp_path / "m.json").read_text())
    facts["01.tar"][3] = "0" * 64
    (tmp_path / "m.json").write_text(json.dumps(facts))
    for entry in remote_shards.cache_folder("shards").rglob("*.tar"):
        entry.unlink()
    source = open_captions(spec)
    assert source[0].image == b"0/0"
    with pytest.raises(UserError, match=r"01\.tar is not the shard that its manifest describes"):
        source[4]


def test_damaged_shards(memory: Traffic) -> None:
    files = fsspec.filesystem("memory")
    whole = shard_bytes(0, 4)
    files.pipe("/bucket/cut/0.tar", whole[: 512 * 10])
    with pytest.raises(UserError, match=r"memory://bucket/cut/0\.tar is cut off or damaged after 2 whole samples"):
        open_captions("wds:memory://bucket/cut/0.tar")
    assert images(open_captions("wds:memory://bucket/cut/0.tar?allow_truncated=1")) == [b"0/0", b"0/1"]
    files.pipe("/bucket/text/0.tar", b"<html>not found</html>" * 100)
    with pytest.raises(UserError, match=r"memory://bucket/text/0\.tar is not an uncompressed tar"):
        open_captions("wds:memory://bucket/text/0.tar")
    files.pipe("/bucket/alone/0.tar", tar_bytes({"1.jpg": b"x", "2.txt": b"y"}))
    with pytest.raises(UserError, match="hold no pair"):
        open_captions("wds:memory://bucket/alone/0.tar")


def test_places_that_cannot_be_written(memory: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"The manifest .*file/m\.json cannot be written"):
        open_captions(f"wds:{FOLDER}?manifest={tmp_path}/file/m.json")
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"Remote shards are fetched to .*, which cannot be made .*; set VLMKIT_CACHE"):
        open_captions(f"wds:{FOLDER}")


def test_options_of_remote_shards_are_refused_for_local_ones(tmp_path: Path) -> None:
    for option in ("cache_gb=3", "manifest=m.json"):
        with pytest.raises(UserError, match=r"cache_gb and manifest are for shards behind a URL"):
            open_captions(f"wds:{tmp_path}?{option}")
    with pytest.raises(UserError, match="must be a size above 0, not 'nan'"):
        open_captions(f"wds:{FOLDER}?cache_gb=nan")


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("https", "aiohttp")])
def test_protocols_whose_package_is_missing(protocol: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(UserError) as caught:
        open_captions(f"wds:{protocol}://bucket/set/0.tar")
    assert str(caught.value) == (
        f"Reading {protocol}:// needs the package {package}, which is not installed; pip install {package}."
    )


def test_unknown_protocols() -> None:
    with pytest.raises(
        UserError, match=r"nonsense://bucket/0\.tar cannot be read .*; use s3://, gs://, https:// or hf"
    ):
        open_captions("wds:nonsense://bucket/0.tar")


SIGNED = "https://host/set/0.tar?X-Amz-Algorithm=AWS4&X-Amz-Signature=ab/c%2F"


def test_queries_of_web_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are passed on, and no part of any name; options of the source may stand among them."""
    opened: list[Any] = []
    monkeypatch.setattr(remote, "_open", lambda url: (None, url))  # as web addresses are, with aiohttp
    monkeypatch.setattr(ShardCaptions, "__init__", lambda self, *args, **options: opened.append((args, options)))
    open_captions(f"wds:{SIGNED}&cache_gb=3")
    assert opened == [((SIGNED,), {"progress": None, "cache_gb": 3.0})]
    with pytest.raises(UserError, match="no option 'cache_bg'; did you mean cache_gb"):
        open_captions("wds:https://host/0.tar?cache_bg=3")
    with pytest.raises(UserError, match="no option 'token'"):
        open_captions("wds:s3://bucket/0.tar?token=3")
    assert find_remote(SIGNED, ".tar") == [SIGNED]
    assert without_query(SIGNED) == "https://host/set/0.tar"
    for other in ("https://host/train-000?.tar", "s3://bucket/a?b=c"):
        assert without_query(other) == other


def test_another_signature_is_the_same_set(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[str] = []

    def get(url: str, path: Path, size: int, patience: float) -> None:
        served.append(url)
        path.write_bytes(shard_bytes(0, 3))

    monkeypatch.setattr(remote, "_open", lambda url: (None, url))
    monkeypatch.setattr(remote_shards, "fetch", get)
    monkeypatch.setattr(remote_shards, "remote_size", lambda url: len(shard_bytes(0, 3)))
    monkeypatch.setattr(shard_manifest, "read_remote", lambda url, required: None)
    first = open_captions(f"wds:{SIGNED}")
    again = open_captions(f"wds:{SIGNED}x")
    assert served == [SIGNED]
    assert first.fingerprint == again.fingerprint and images(again) == [b"0/0", b"0/1", b"0/2"]


class Refused(Exception):
    status = 403


def test_a_manifest_that_one_may_not_read_is_none_unless_it_is_named(
    memory: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (PermissionError("no"), Refused()):
        monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", _raising(error))
        assert len(open_captions(f"wds:{FOLDER}")) == len(EXPECTED)
        with pytest.raises(UserError, match="cannot be fetched"):
            read_remote(f"{FOLDER}/m.json")


def _raising(error: Exception) -> Any:
    def raise_it(*_: Any, **__: Any) -> None:
        raise error

    return raise_it


def test_a_network_that_is_away_for_minutes_ends_no_run(
    memory: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits for a source to open, or is refused, hears of it soon."""
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    files = type(fsspec.filesystem("memory"))
    get_file = files.get_file
    monkeypatch.setattr(files, "get_file", _raising(ConnectionError("down")))
    with pytest.raises(UserError, match="ConnectionError: down"):
        open_captions(f"wds:{FOLDER}")
    assert max(waited) < 4
    waited.clear()
    with pytest.raises(UserError, match="ConnectionError: down"):
        fetch(f"{FOLDER}/00.tar", tmp_path / "x", 10)
    assert 300 < sum(waited) < 400 and max(waited) <= 60
    assert "00.tar did not arrive (down); trying again in 1 s" in caplog.text
    monkeypatch.setattr(files, "get_file", get_file)
    source = open_captions(f"wds:{FOLDER}")
    for entry in remote_shards.cache_folder("shards").rglob("*.tar"):
        entry.unlink()
    waited.clear()
    monkeypatch.setattr(files, "get_file", _raising(ConnectionError("down")))
    with pytest.raises(UserError, match="ConnectionError: down"):
        source[0]
    assert sum(waited) > 300
    waited.clear()
    monkeypatch.setattr(files, "get_file", _raising(Refused()))
    with pytest.raises(UserError, match="cannot be fetched"):
        source[0]
    assert not waited


def test_a_fetch_is_tried_again_and_then_reported(
    memory: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    files = fsspec.filesystem("memory")
    get_file, calls = type(files).get_file, []

    def flaky(self: Any, path: str, local: str, **options: Any) -> None:
        calls.append(path)
        if len(calls) < 3:
            raise ConnectionError("reset by peer")
        get_file(self, path, local, **options)

    monkeypatch.setattr(type(files), "get_file", flaky)
    url, content = f"{FOLDER}/00.tar", shard_bytes(0, 3)
    fetch(url, tmp_path / "x", len(content))
    assert (tmp_path / "x").read_bytes() == content
    with pytest.raises(UserError, match=r"00\.tar cannot be fetched \(OSError: \d+ bytes arrived where there should"):
        fetch(url, tmp_path / "x", len(content) + 1)
    monkeypatch.setattr(type(files), "get_file", lambda *a, **o: (_ for _ in ()).throw(ConnectionError("down")))
    with pytest.raises(UserError, match=r"\(ConnectionError: down\); check the address, the network and your access"):
        fetch(url, tmp_path / "x", len(content))
