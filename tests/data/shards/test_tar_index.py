"""Scanning tars, whole and broken, against the standard library."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from vlmkit.data.shards.tar_index import scan_tar
from vlmkit.errors import UserError

FILES = {f"{i:03d}.txt": f"text {i} ".encode() * (i * 40 + 1) for i in range(6)}


def write_tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT, **fields: object) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return path


def contents(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    return {member.name: data[member.offset : member.offset + member.size] for member in scan_tar(path).members}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_they_are_said_to_be(tmp_path: Path, format: int) -> None:
    files = dict(FILES)
    files["folder/" + "x" * 60 + "/" + "long name " * 6 + ".txt"] = b"split into prefix and name"
    if format != tarfile.USTAR_FORMAT:
        files["folder/" + "long name " * 30 + "é.txt"] = b"long"
    path = write_tar(tmp_path / "a.tar", files, format)
    assert contents(path) == files
    assert scan_tar(path).intact


def test_headers_with_fractional_times_are_understood(tmp_path: Path) -> None:
    """As in shards written by webdataset, where each file has an extended header."""
    path = write_tar(tmp_path / "a.tar", FILES, mtime=1234.5, uname="größe")
    assert contents(path) == FILES


def test_every_member_is_found_where_the_standard_library_finds_it(shared_data: Path) -> None:
    path = shared_data / "captions" / "val-0000.tar"
    with tarfile.open(path) as tar:
        expected = [(entry.name, entry.offset_data, entry.size) for entry in tar]
    assert [tuple(member) for member in scan_tar(path).members] == expected


def test_directories_and_links_are_no_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("long" * 60, tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "target" * 40
            info.size = 700  # means nothing there
            tar.addfile(info)
        info = tarfile.TarInfo("folder/x.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    index = scan_tar(tmp_path / "a.tar")
    assert [member.name for member in index.members] == ["folder/x.txt"]
    assert index.intact


def test_sizes_beyond_eleven_octal_digits(tmp_path: Path) -> None:
    """A sparse file, so that the disk does not have to hold nine gigabytes."""
    size = 9 * 2**30
    header = tarfile.TarInfo("huge.bin")
    header.size = size
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + size)
        small = tarfile.TarInfo("small.txt")
        small.size = 1
        file.write(small.tobuf(tarfile.USTAR_FORMAT) + b"x".ljust(512, b"\0") + bytes(1024))
    members = scan_tar(tmp_path / "a.tar").members
    assert [tuple(member) for member in members] == [("huge.bin", 512, size), ("small.txt", 1024 + size, 1)]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("offset", range(0, 512 * 20, 200))
def test_every_cut_is_noticed_and_leaves_whole_members(tmp_path: Path, offset: int, format: int) -> None:
    files = {**FILES, "long name " * 20: b"long"}
    whole = write_tar(tmp_path / "whole.tar", files, format)
    with tarfile.open(whole) as tar:
        ends = {entry.name: entry.offset_data + entry.size for entry in tar}
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:offset])
    if offset < 512:
        with pytest.raises(UserError, match="not an uncompressed tar"):
            scan_tar(cut)
        return
    index = scan_tar(cut)
    assert not index.intact
    assert [member.name for member in index.members] == [name for name, end in ends.items() if end <= offset]


def test_a_broken_header_in_the_middle_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[third : third + 512] = os.urandom(512)
    path.write_bytes(data)
    index = scan_tar(path)
    assert not index.intact
    assert len(index.members) == 2


@pytest.mark.parametrize("records", [b"", b"x", b"5 path=", b"999999 path=x\n", b"12 size=abc\n", b"\xff" * 30])
def test_malformed_extended_headers_are_survived(tmp_path: Path, records: bytes) -> None:
    note = tarfile.TarInfo("note")
    note.type, note.size = tarfile.XHDTYPE, len(records)
    file = tarfile.TarInfo("x.txt")
    blocks = note.tobuf(tarfile.USTAR_FORMAT) + records.ljust(-(-len(records) // 512) * 512, b"\0")
    (tmp_path / "a.tar").write_bytes(blocks + file.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    assert len(scan_tar(tmp_path / "a.tar").members) == 1


def test_compressed_tars_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    with pytest.raises(UserError, match=r"a\.tar is not an uncompressed tar"):
        scan_tar(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"s3://b/a\.tar is not an uncompressed tar"):
        scan_tar(tmp_path / "a.tar", "s3://b/a.tar")
