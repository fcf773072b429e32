"""Captions from CSV, TSV, Parquet and JSON lines: columns found, rows read, bad rows bad, bad files refused."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from vlmkit.data.disk_cache import cache_folder
from vlmkit.data.samples import BadSample
from vlmkit.data.sources import tables
from vlmkit.data.sources.opener import open_captions
from vlmkit.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images a.png to d.png, each holding its letter."""
    (tmp_path / "pictures").mkdir()
    for letter in "abcd":
        (tmp_path / "pictures" / f"{letter}.png").write_bytes(letter.encode())
    return tmp_path


def write_csv(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    pa_parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


def write_jsonl(path: Path, *records: Any) -> Path:
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def rows(source: Any) -> list[Any]:
    """(image, captions) of each row; the reason where a row is bad."""
    found: list[Any] = []
    for index in range(len(source)):
        try:
            sample = source[index]
            assert source.captions_only(index) == sample.captions
            found.append((sample.image, sample.captions))
        except BadSample as error:
            found.append(str(error))
    return found


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


def test_csv(folder: Path) -> None:
    file = write_csv(
        folder / "a.csv",
        'id,filepath,title\n1,pictures/a.png,a dog\n2,pictures/b.png,"größe, ""quoted""\nover two lines"\n',
    )
    assert rows(open_captions(f"csv:{file}")) == [
        (b"a", ("a dog",)),
        (b"b", ('größe, "quoted"\nover two lines',)),
    ]


@pytest.mark.parametrize(
    ("name", "separator", "option"), [("a.tsv", "\t", ""), ("a.csv", ";", "&sep=;"), ("a.csv", "\t", "&sep=tab")]
)
def test_separators(folder: Path, name: str, separator: str, option: str) -> None:
    lines = [["image", "caption"], ["a.png", "one, two"], [str(folder / "pictures" / "b.png"), "three"]]
    file = write_csv(folder / name, "\r\n".join(separator.join(line) for line in lines))
    source = open_captions(f"csv:{file}?root={folder}/pictures{option}")
    assert rows(source) == [(b"a", ("one, two",)), (b"b", ("three",))]


def test_columns_by_name(folder: Path) -> None:
    file = write_csv(folder / "a.csv", "x,image,caption,y\npictures/a.png,-,-,words\n")
    assert rows(open_captions(f"csv:{file}?image=x&caption=y")) == [(b"a", ("words",))]
    with pytest.raises(UserError, match=r"a\.csv has no column 'z'; its columns are: x, image, caption, y\."):
        open_captions(f"csv:{file}?image=x&caption=z")
    other = write_csv(folder / "b.csv", "x,TEXT\npictures/a.png,words\n")
    with pytest.raises(UserError, match=r"b\.csv has no column .* choose one with \?image=, of: x, TEXT\."):
        open_captions(f"csv:{other}")
    assert rows(open_captions(f"csv:{other}?image=x")) == [(b"a", ("words",))]


def test_several_captions_as_a_json_list(folder: Path) -> None:
    cells = ['["one", "", null, "two"]', '["one", 2]', "[not json", "[]"]
    lines = ["image\tcaption"]
    for letter, cell in zip("abcd", cells, strict=True):
        doubled = cell.replace('"', '""')
        lines.append(f'pictures/{letter}.png\t"{doubled}"')
    source = open_captions(f"csv:{write_csv(folder / 'a.tsv', chr(10).join(lines))}")
    assert [captions for _, captions in rows(source)] == [("one", "two"), ('["one", 2]',), ("[not json",), ("[]",)]


def test_bad_rows_of_a_csv(folder: Path) -> None:
    file = write_csv(
        folder / "a.csv",
        b"image,caption\npictures/a.png,good\npictures/missing.png,x\n,x\npictures/b.png,\npictures/b.png,\xff\xfe\n"
        b"too,many,cells\npictures/c.png,fine\nalone\n\xff,x\nnul\x00.png,x\n",
    )
    found = rows(open_captions(f"csv:{file}"))
    assert found[0] == (b"a", ("good",))
    assert "missing.png cannot be read (No such file" in found[1]
    assert found[2:4] == ["there is no image", "the caption is empty or not a text"]
    assert "the caption in row 4" in found[4] and "is not UTF-8" in found[4]
    assert found[5] == (b"c", ("fine",))
    assert "the image in row 6" in found[6] and "is not UTF-8" in found[6]
    assert "cannot be read" in found[7]
    assert len(found) == 10
    assert all("cannot be read" in reason for reason in found[8:])  # the two rows of another length, at the end


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a\.csv cannot be read"),
        ("", r"a\.csv is not a CSV file with a header \(Empty CSV file"),
        ("image,caption\n", r"a\.csv holds no rows"),
        ("image,caption\nnowhere/a.png,x\n", r"images are not there, e\.g\. .*nowhere/a\.png; name their .*\?root=DIR"),
    ],
)
def test_csv_files_of_no_use(folder: Path, content: str | None, message: str) -> None:
    if content is not None:
        write_csv(folder / "a.csv", content)
    with pytest.raises(UserError, match=message):
        open_captions(f"csv:{folder}/a.csv")


@pytest.mark.parametrize("cell", ['"a stray quote', '"two cells","in place of one'])
@pytest.mark.parametrize("block", [2**24, 2**17])
def test_a_quote_that_is_never_closed_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cell: str, block: int
) -> None:
    monkeypatch.setattr(tables, "_CSV_BLOCK_BYTES", block)
    lines = [f"pictures/a.png,the caption of row {row}" for row in range(10000)]
    lines[2] = "alone"  # a row that is skipped counts too
    lines[5] = f"pictures/a.png,{cell}"
    file = write_csv(folder / "a.csv", "image,caption\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"a\.csv has a quote that is never closed.*; check row 7 "):
        open_captions(f"csv:{file}")
    lines[5] = 'pictures/a.png,a quote " inside of a cell opens nothing'
    write_csv(file, "image,caption\n" + "\n".join(lines) + "\n")
    assert len(open_captions(f"csv:{file}")) == 10000


def test_long_cells_of_one_line_are_no_open_quotes(folder: Path) -> None:
    file = write_csv(folder / "a.csv", f"image,caption,pixels\npictures/a.png,x,{'A' * 2**17}\n")
    assert rows(open_captions(f"csv:{file}")) == [(b"a", ("x",))]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_headers_in_other_encodings(folder: Path, encoding: str) -> None:
    file = write_csv(folder / "a.csv", "image,größe,caption\na.png,1,x\n".encode(encoding))
    with pytest.raises(UserError, match=r"The header of .*a\.csv is not UTF-8 .*iconv"):
        open_captions(f"csv:{file}")


def test_wrong_separators(folder: Path) -> None:
    with pytest.raises(UserError, match=r"sep of the source .* must be one character, or tab, not 'ab'"):
        open_captions(f"csv:{folder}/a.csv?sep=ab")


# --- Parquet ----------------------------------------------------------------------------------------------------------

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize(
    "images",
    [
        pa.array([b"a", b"b", b"c"]),
        pa.array([b"a", b"b", b"c"], pa.large_binary()),
        pa.array(["pictures/a.png", "pictures/b.png", "pictures/c.png"]),
        pa.array([{"bytes": b"a", "path": "x"}, {"bytes": b"b", "path": None}, {"path": "pictures/c.png"}], STRUCT),
    ],
    ids=["bytes", "large", "paths", "struct"],
)
def test_parquet_images_in_every_form(folder: Path, images: Any) -> None:
    captions = pa.array([["one", "two"], ["three"], ["four"]])
    file = write_parquet(folder / "a.parquet", image=images, texts=captions, other=[1, 2, 3])
    assert rows(open_captions(f"parquet:{file}")) == [(b"a", ("one", "two")), (b"b", ("three",)), (b"c", ("four",))]


def test_parquet_in_several_files(folder: Path) -> None:
    heard: list[tuple[int, int]] = []
    for number in range(3):
        write_parquet(folder / f"{number}.parquet", jpg=[bytes([number])] * 3, text=[f"{number}/{i}" for i in range(3)])
    expected = [(bytes([number]), (f"{number}/{i}",)) for number in range(3) for i in range(3)]
    assert rows(open_captions(f"parquet:{folder}", lambda *done: heard.append(done))) == expected
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert rows(open_captions(f"parquet:{folder}/{{0,2}}.parquet")) == expected[:3] + expected[6:]
    assert rows(open_captions(f"parquet:{folder}/[12].parquet")) == expected[3:]


@pytest.mark.parametrize("as_struct", [False, True])
def test_paths_in_parquet_are_relative_to_their_own_file_or_to_a_root(folder: Path, as_struct: bool) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(name.encode())
        paths = ["a.png", str(folder / "pictures" / "b.png"), None, ""]
        images = pa.array([{"path": path} for path in paths], STRUCT) if as_struct else pa.array(paths)
        write_parquet(folder / name / "x.parquet", image=images, caption=["1", "2", "3", "4"])
    found = rows(open_captions(f"parquet:{folder}/{{one,two}}/x.parquet"))
    assert found[:2] == [(b"one", ("1",)), (b"b", ("2",))]
    assert found[4:6] == [(b"two", ("1",)), (b"b", ("2",))]
    assert all(isinstance(reason, str) for reason in found[2:4] + found[6:])
    found = rows(open_captions(f"parquet:{folder}/{{one,two}}/x.parquet?root={folder}/pictures"))
    assert found[0] == found[4] == (b"a", ("1",))


def test_parquet_texts_in_dictionaries(folder: Path) -> None:
    texts = pa.array(["one", "two", "one"]).dictionary_encode()
    file = write_parquet(folder / "a.parquet", image=[b"a"] * 3, caption=texts)
    write_parquet(folder / "b.parquet", image=[b"a"], caption=["plain"])
    assert rows(open_captions(f"parquet:{file}")) == [(b"a", (text,)) for text in ("one", "two", "one")]
    assert len(open_captions(f"parquet:{folder}")) == 4


def test_bad_rows_of_a_parquet_file(folder: Path) -> None:
    file = write_parquet(
        folder / "a.parquet",
        image=pa.array(
            [{"bytes": b"a"}, None, {}, {"path": "pictures/z.png"}, {"bytes": b"e"}, {"bytes": b"f"}], STRUCT
        ),
        caption=pa.array([["fine", None, " "], ["x"], ["x"], ["x"], None, [" ", None]]),
    )
    found = rows(open_captions(f"parquet:{file}"))
    assert found[0] == (b"a", ("fine",))
    assert "row 1" in found[1] and "has no image" in found[1]
    assert found[2] == "there is no image"
    assert "z.png cannot be read" in found[3]
    assert "row 4" in found[4] and "has no caption" in found[4]
    assert found[5] == "the caption is empty or not a text"


def test_parquet_files_of_no_use(folder: Path) -> None:
    with pytest.raises(UserError, match="No Parquet files found"):
        open_captions(f"parquet:{folder}/*.parquet")
    with pytest.raises(UserError, match=r"none\.parquet cannot be read as Parquet"):
        open_captions(f"parquet:{folder}/none.parquet")
    (folder / "text.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"text\.parquet cannot be read as Parquet"):
        open_captions(f"parquet:{folder}/text.parquet")
    (folder / "text.parquet").unlink()
    file = write_parquet(folder / "a.parquet", image=[1, 2], caption=["a", "b"], words=[1, 2], pixels=[b"a", b"b"])
    with pytest.raises(UserError, match=r"Column 'image' of .* type int64, which holds no images; choose .*?image="):
        open_captions(f"parquet:{file}")
    with pytest.raises(UserError, match=r"Column 'words' of .* type int64, which holds no captions"):
        open_captions(f"parquet:{file}?image=pixels&caption=words")
    with pytest.raises(UserError, match=r"has no column 'x'; its columns are: image, caption, words, pixels"):
        open_captions(f"parquet:{file}?image=x")
    write_parquet(folder / "b.parquet", image=["x"], text=["y"])
    with pytest.raises(UserError, match=r"b\.parquet has no column 'pixels'"):
        open_captions(f"parquet:{folder}?image=pixels")
    write_parquet(folder / "b.parquet", pixels=["text"], caption=["y"])
    with pytest.raises(UserError, match=r"columns of .*b\.parquet have other types than those of .*a\.parquet"):
        open_captions(f"parquet:{folder}/{{a,b}}.parquet?image=pixels")


def test_a_full_disk_is_said_and_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "_convert_parquet", fill)
    file = write_parquet(folder / "a.parquet", image=[b"a"], caption=["x"])
    with pytest.raises(UserError, match=r"The disk of .* is full; free space, or set VLMKIT_CACHE"):
        open_captions(f"parquet:{file}")
    assert not [path for path in cache_folder("tables").iterdir() if path.is_dir()]


# --- JSON lines -------------------------------------------------------------------------------------------------------


def test_jsonl(folder: Path) -> None:
    file = write_jsonl(
        folder / "a.jsonl",
        {"image": "a.png", "caption": "one"},
        {"file_name": "b.png", "captions": ["two", "zwei"], "id": 7},
        {"file_name": "c.png", "text": "größe"},
        b"",
    )
    assert rows(open_captions(f"jsonl:{file}?images={folder}/pictures")) == [
        (b"a", ("one",)),
        (b"b", ("two", "zwei")),
        (b"c", ("größe",)),
    ]
    with pytest.raises(UserError, match=r"images are not there, e\.g\. .*a\.png; name their folder with \?images=DIR"):
        open_captions(f"jsonl:{file}")


def test_bad_lines_of_a_jsonl_file(folder: Path) -> None:
    file = write_jsonl(
        folder / "a.jsonl",
        {"image": "pictures/a.png", "caption": ["fine", " ", None]},
        b"{broken",
        ["a list"],
        {"image": 5, "caption": "x"},
        {"image": "pictures/b.png"},
        {"image": "pictures/b.png", "caption": ["x", 3]},
        {"image": "pictures/b.png", "caption": []},
        {"image": "pictures/z.png", "caption": "x"},
        b"\xff\xfe",
    )
    found = rows(open_captions(f"jsonl:{file}"))
    assert found[0] == (b"a", ("fine",))
    assert len(found) == 9
    assert all(isinstance(reason, str) for reason in found[1:])
    assert "row 1" in found[1] and "row 4" in found[4]


def test_jsonl_files_of_no_use(folder: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl cannot be read \(No such file"):
        open_captions(f"jsonl:{folder}/none.jsonl")
    with pytest.raises(UserError, match=r" cannot be read \(Is a directory\)"):
        open_captions(f"jsonl:{folder}")
    file = write_jsonl(folder / "a.jsonl", {"url": "x", "alt": "y"})
    with pytest.raises(
        UserError, match=r"No line of .*a\.jsonl is an object with an image .*; the first has: url, alt"
    ):
        open_captions(f"jsonl:{file}")
    with pytest.raises(UserError, match="the first has: nothing"):
        open_captions(f"jsonl:{write_jsonl(folder / 'b.jsonl')}")


# --- all of them ------------------------------------------------------------------------------------------------------


def _make_csv(folder: Path, caption: str) -> str:
    file = write_csv(folder / "a.csv", f"image,caption\npictures/a.png,{caption}\n")
    return f"csv:{file}"


def _make_parquet(folder: Path, caption: str) -> str:
    return f"parquet:{write_parquet(folder / 'a.parquet', image=['pictures/a.png'], caption=[caption])}"


def _make_jsonl(folder: Path, caption: str) -> str:
    return f"jsonl:{write_jsonl(folder / 'a.jsonl', {'image': 'pictures/a.png', 'caption': caption})}"


@pytest.mark.parametrize("make", [_make_csv, _make_parquet, _make_jsonl])
def test_fingerprints_see_text_and_images_but_not_the_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, make: Callable[[Path, str], str]
) -> None:
    first = open_captions(make(folder, "x")).fingerprint
    assert open_captions(make(folder, "x")).fingerprint == first
    second = open_captions(make(folder, "y")).fingerprint
    (folder / "pictures" / "a.png").write_bytes(b"longer")
    third = open_captions(make(folder, "x")).fingerprint
    assert len({first, second, third}) == 3
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "pictures").mkdir()
    (elsewhere / "pictures" / "a.png").write_bytes(b"a")
    assert open_captions(make(elsewhere, "x")).fingerprint == first


@pytest.mark.parametrize("make", [_make_csv, _make_parquet, _make_jsonl])
def test_tables_are_converted_once_and_copies_carry_no_rows(
    folder: Path, make: Callable[[Path, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(folder, "a caption that is long enough to tell" * 100)
    first = open_captions(spec)
    for name in ("_convert_csv", "_convert_parquet", "_convert_jsonl"):
        monkeypatch.setattr(tables, name, lambda *_: pytest.fail("converted again"))
    assert rows(open_captions(spec)) == rows(first)
    copy = pickle.dumps(first)
    assert len(copy) < 2000
    assert rows(pickle.loads(copy)) == rows(first)
    with pytest.raises(IndexError):
        first[1]
    with pytest.raises(IndexError):
        first[-1]


def test_a_damaged_copy_is_made_again(folder: Path) -> None:
    spec = _make_csv(folder, "x")
    expected = rows(open_captions(spec))
    (entry,) = (path for path in cache_folder("tables").iterdir() if path.is_dir())
    for name in ("rows.arrow", "header.json"):
        for content in (b"", b"{}", os.urandom(50)):
            (entry / name).write_bytes(content)
            assert rows(open_captions(spec)) == expected
