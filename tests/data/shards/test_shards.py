"""Captions in local tar shards: real ones, every form of caption, and what is missing or damaged."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from shard_files import tar_bytes

from vlmkit.data.images import decode_image
from vlmkit.data.samples import BadSample
from vlmkit.data.sources.opener import open_captions
from vlmkit.errors import UserError


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(tar_bytes(files))


def test_real_captions(shared_data: Path) -> None:
    folder = shared_data / "captions"
    train = open_captions(f"wds:{folder}/train-000?.tar")
    assert len(train) == 1379
    assert len(open_captions(f"wds:{folder}/val-0000.tar")) == 200
    assert len(open_captions(f"wds:{folder}")) == 1579
    assert len(open_captions(f"wds:{folder}/train-{{0000..0002}}.tar")) == 1050
    assert len(open_captions(f"wds:{folder}/{{train-0003,val-0000}}.tar")) == 529
    with tarfile.open(folder / "train-0001.tar") as tar:
        members = tar.getmembers()
        image, text = (tar.extractfile(member) for member in members[:2])
        assert image is not None and text is not None
        assert train[350].image == image.read()
        assert train[350].captions == (text.read().decode(),)
    assert all(decode_image(train[index].image).shape[0] == 3 for index in range(0, 1379, 97))


def test_captions_from_text_or_json(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "a.tar",
        {
            "dir/0001.JPG": b"one",
            "dir/0001.txt": "größe".encode(),
            "dir/0001.json": b'{"caption": "not this"}',
            "0002.json": b'{"caption": ["two", "deux"]}',
            "0002.webp": b"two",
            "0002.cls": b"3",
            "0003.seg.png": b"mask",
            "0003.png": b"three",
            "0003.json": b'{"caption": "three"}',
        },
    )
    source = open_captions(f"wds:{tmp_path}/a.tar")
    assert [(source[i].image, source[i].captions) for i in range(len(source))] == [
        (b"one", ("größe",)),
        (b"two", ("two", "deux")),
        (b"three", ("three",)),
    ]
    assert [source.captions_only(i) for i in range(3)] == [("größe",), ("two", "deux"), ("three",)]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]


def test_unusable_captions_are_bad_samples(tmp_path: Path) -> None:
    texts = {
        "a.txt": b"good",
        "b.txt": b"\xff\xfe not utf-8",
        "c.txt": b"  \n",
        "d.json": b"{broken",
        "e.json": b'{"text": "no caption"}',
        "f.json": b'{"caption": null}',
        "g.json": b'{"caption": []}',
        "h.json": b'["caption"]',
        "i.nothing": b"",
    }
    files = {}
    for name, data in texts.items():
        files |= {f"{name[0]}.jpg": b"image", name: data}
    write_shard(tmp_path / "a.tar", {**files, "j.txt": b"no image"})
    source = open_captions(f"wds:{tmp_path}")
    assert len(source) == 10
    assert source[0].captions == ("good",)
    for index in range(1, 10):
        with pytest.raises(BadSample, match=r"caption|image"):
            source[index]


def test_cut_off_shards_are_refused_or_used_as_far_as_they_go(tmp_path: Path) -> None:
    files = {f"{i}.{extension}": b"x" * 700 for i in range(5) for extension in ("jpg", "txt")}
    write_shard(tmp_path / "a.tar", files)
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: 512 * 3 * 7 + 900])  # inside the text of sample 3
    with pytest.raises(UserError, match=r"a\.tar is cut off or damaged after 3 whole samples; .*allow_truncated"):
        open_captions(f"wds:{tmp_path}")
    source = open_captions(f"wds:{tmp_path}?allow_truncated=1")
    assert [source[i].captions for i in range(len(source))] == [("x" * 700,)] * 3


@pytest.mark.parametrize(
    ("where", "message"),
    [("missing.tar", "no readable shard"), ("none-*.tar", "No shards found"), ("empty", "No shards found")],
)
def test_missing_shards(tmp_path: Path, where: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        open_captions(f"wds:{tmp_path}/{where}")


def test_shards_without_pairs(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"1.jpg": b"x", "2.txt": b"y"})
    write_shard(tmp_path / "b.tar", {})
    for where in ("a.tar", "b.tar"):
        with pytest.raises(UserError, match="hold no pair"):
            open_captions(f"wds:{tmp_path}/{where}")


def test_shard_fingerprint_is_that_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    write_shard(tmp_path / "one" / "a.tar", {"1.jpg": b"x", "1.txt": b"y"})
    shutil.copy(tmp_path / "one" / "a.tar", (tmp_path / "two").mkdir() or tmp_path / "two" / "a.tar")
    fingerprint = open_captions(f"wds:{tmp_path}/one").fingerprint
    assert open_captions(f"wds:{tmp_path}/two").fingerprint == fingerprint
    write_shard(tmp_path / "two" / "b.tar", {"1.jpg": b"x", "1.txt": b"y"})
    assert open_captions(f"wds:{tmp_path}/two").fingerprint != fingerprint
