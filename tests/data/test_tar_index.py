"""Scanning and reading tar shards, whole and broken."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from vlmkit.data import tar_index
from vlmkit.data.samples import BadSample
from vlmkit.data.tar_index import Shard
from vlmkit.errors import UserError

FILES = {f"{i:03d}.txt": f"text {i} ".encode() * (i * 40 + 1) for i in range(6)}


def write_tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(shard: Shard) -> dict[str, bytes]:
    return {member.name: shard.read(member.offset, member.size) for member in shard.index().members}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_in_place(tmp_path: Path, format: int) -> None:
    files = dict(FILES)
    if format != tarfile.USTAR_FORMAT:
        files["folder/" + "long name " * 30 + "é.txt"] = b"long"
    shard = Shard.at(write_tar(tmp_path / "a.tar", files, format))
    assert contents(shard) == files
    assert shard.index().intact


def test_directories_and_links_are_no_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            tar.addfile(info)
        info = tarfile.TarInfo("folder/x.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    index = Shard.at(tmp_path / "a.tar").index()
    assert [member.name for member in index.members] == ["folder/x.txt"]
    assert index.intact


def test_the_index_is_cached_and_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    first = Shard.at(path).index()
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_scan", lambda path: pytest.fail("scanned again"))
        assert Shard.at(path).index() == first
    write_tar(path, {"other.txt": b"other"})
    assert contents(Shard.at(path)) == {"other.txt": b"other"}


def test_a_damaged_or_unwritable_cache_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Shard.at(write_tar(tmp_path / "a.tar", FILES))
    shard.index()
    (entry,) = (tmp_path / "cache").rglob("*.json")
    entry.write_text("{}")
    assert contents(shard) == FILES
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "file" / "below"))
    assert contents(shard) == FILES


@pytest.mark.parametrize("offset", range(0, 512 * 14, 200))
def test_every_cut_is_noticed_and_leaves_whole_members(tmp_path: Path, offset: int) -> None:
    whole = write_tar(tmp_path / "whole.tar", FILES)
    with tarfile.open(whole) as tar:
        ends = {entry.name: entry.offset_data + entry.size for entry in tar}
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:offset])
    if offset < 512:
        with pytest.raises(UserError, match="not an uncompressed tar"):
            Shard.at(cut).index()
        return
    index = Shard.at(cut).index()
    assert not index.intact
    assert [member.name for member in index.members] == [name for name, end in ends.items() if end <= offset]


def test_a_broken_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[third : third + 512] = os.urandom(512)
    path.write_bytes(data)
    index = Shard.at(path).index()
    assert not index.intact
    assert len(index.members) == 2


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    with pytest.raises(UserError, match=r"a\.tar is not an uncompressed tar"):
        Shard.at(tmp_path / "a.tar").index()


def test_missing_shard() -> None:
    with pytest.raises(UserError, match="no readable shard at nowhere"):
        Shard.at(Path("nowhere.tar"))


def test_a_shard_that_shrinks_or_vanishes_gives_bad_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    shard = Shard.at(path)
    last = shard.index().members[-1]
    os.truncate(path, last.offset + 1)
    with pytest.raises(BadSample, match="shorter"):
        shard.read(last.offset, last.size)
    other = Shard.at(write_tar(tmp_path / "b.tar", FILES))
    (tmp_path / "b.tar").unlink()
    with pytest.raises(BadSample, match="cannot be read"):
        other.read(512, 1)


def test_many_open_shards_leave_no_descriptors_behind(tmp_path: Path) -> None:
    shards = [Shard.at(write_tar(tmp_path / f"{i}.tar", {"x": bytes([i])})) for i in range(150)]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    assert [shard.read(512, 1) for shard in shards] == [bytes([i]) for i in range(150)]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) - before <= 64


def test_shards_pickle(tmp_path: Path) -> None:
    shard = Shard.at(write_tar(tmp_path / "a.tar", FILES))
    contents(shard)
    assert contents(pickle.loads(pickle.dumps(shard))) == FILES
