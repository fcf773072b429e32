"""Where the rows of benchmarks come from: files of every kind, pinned revisions, and data that will not do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from made_up_tables import TABLES, png, write_fixture, write_json, write_tsv

from vlmkit.data.samples import BadSample
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import open_benchmark
from vlmkit.evals.benchmarks.lock import LOCK_FILE, Lock

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def rows_of(name: str) -> list[dict[str, Any]]:
    return [dict(row) for row in next(iter(TABLES[name].values()))]


def opened(name: str, directory: Path) -> Any:
    return open_benchmark(name, directory)


@pytest.mark.parametrize(
    ("name", "write", "file"),
    [
        ("mmbench_en_dev", write_tsv, "MMBench_DEV_EN.tsv"),
        ("mme", write_tsv, "mme.tsv"),
        ("vizwiz_vqa", write_tsv, "val.tsv"),
        ("vizwiz_vqa", write_json, "val.json"),
        ("scienceqa_img", write_json, "test.json"),
        ("docvqa", write_json, "validation.json"),
    ],
)
def test_other_kinds_of_files_give_what_parquet_gives(name: str, write: Callable, file: str, tmp_path: Path) -> None:
    write_fixture(name, tmp_path / "parquet")
    write(rows_of(name), tmp_path / "other" / name / file)
    expected, found = (opened(name, tmp_path / kind).samples for kind in ("parquet", "other"))
    assert len(found) == len(expected)
    for index in range(len(expected)):
        assert found[index].questions == expected[index].questions
        assert found[index].read_images() == expected[index].read_images()


def test_of_a_clone_with_every_configuration_the_split_is_read(tmp_path: Path) -> None:
    """MMMU/MMMU has a folder for each subject; other splits lie beside the one that counts."""
    (row, other) = rows_of("mmmu")
    for path, kept in {"Accounting/validation-0": row, "Art/validation-0": other, "Art/test-0": row}.items():
        file = tmp_path / "mmmu" / f"{path}0000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list([row, kept]).select([1]).to_parquet(str(file))
    samples = opened("mmmu", tmp_path).samples
    assert [samples[index].id for index in range(len(samples))] == [row["id"], other["id"]]


def test_the_revision_of_unpinned_files_is_their_content(tmp_path: Path) -> None:
    for directory, shade in (("a", 1), ("b", 1), ("c", 2)):
        row = {**rows_of("docvqa")[0], "image": {"bytes": png(shade), "path": None}}
        write_json([row], tmp_path / directory / "docvqa" / "val.json")
    a, b, c = (opened("docvqa", tmp_path / directory).samples.fingerprint for directory in "abc")
    assert a.startswith("sha256:") and a == b != c


def lock(name: str, directory: Path) -> Path:
    """Pin the fixture of a benchmark to COMMIT."""
    folder = write_fixture(name, directory)
    samples = opened(name, directory).samples
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*.parquet"))}
    Lock("owner/set", COMMIT, "test", len(samples), sum(files.values()), files, samples.digest()).write(folder)
    return folder


def test_locked_data_carry_their_revision_and_are_the_files_that_it_names(tmp_path: Path) -> None:
    folder = lock("chartqa", tmp_path)
    write_json(rows_of("chartqa")[:1], folder / "more" / "test.json")
    benchmark = opened("chartqa", tmp_path)
    assert (benchmark.samples.fingerprint, len(benchmark.samples)) == (COMMIT, 2)


def test_locked_data_that_changed_are_refused(tmp_path: Path) -> None:
    folder = lock("chartqa", tmp_path)
    path = next(folder.rglob("*.parquet"))
    content, lock_text = path.read_bytes(), (folder / LOCK_FILE).read_text()
    path.write_bytes(content + b" ")
    with pytest.raises(UserError, match=r"not revision 0123456789ab of owner/set.*has another size.*--prepare chartqa"):
        opened("chartqa", tmp_path)
    path.write_bytes(content)
    (folder / LOCK_FILE).write_text(lock_text.replace(json.loads(lock_text)["fingerprint"], "0" * 64))
    with pytest.raises(UserError, match="the rows differ"):
        opened("chartqa", tmp_path)
    (folder / LOCK_FILE).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        opened("chartqa", tmp_path)


@pytest.mark.parametrize("present", ["lmms-lab-encoder/POPE", "lmms-lab/POPE"])
def test_what_the_hubs_cache_holds_is_used_at_its_commit(present: str, tmp_path: Path) -> None:
    """As lmms-eval leaves it, under the new id or the old."""
    repository = tmp_path / "hub" / f"datasets--{present.replace('/', '--')}"
    write_fixture("pope", tmp_path / "made").rename(tmp_path / "pope")
    (repository / "snapshots").mkdir(parents=True)
    (tmp_path / "pope").rename(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    benchmark = open_benchmark("pope")
    assert (benchmark.samples.fingerprint, len(benchmark.samples)) == (COMMIT, 3)


def test_data_that_are_not_there_are_one_sentence_with_the_command_that_gets_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data of gqa in .*`vlmkit eval --prepare gqa`, or name the folder"):
        open_benchmark("gqa")
    with pytest.raises(UserError, match=rf"get them with `vlmkit eval --prepare gqa --data-dir {tmp_path}`\.$"):
        opened("gqa", tmp_path)


def test_missing_shards_and_configurations_are_told(tmp_path: Path) -> None:
    folder = write_fixture("pope", tmp_path)
    (folder / "data/test-00000-of-00001.parquet").rename(folder / "data/test-00000-of-00003.parquet")
    with pytest.raises(UserError, match=r"lack 2 files.*--prepare pope"):
        opened("pope", tmp_path)
    next((write_fixture("gqa", tmp_path) / "testdev_balanced_images").iterdir()).unlink()
    with pytest.raises(UserError, match=r"lack a part.*--prepare gqa"):
        opened("gqa", tmp_path)


def without(name: str, *columns: str) -> list[dict[str, Any]]:
    return [{key: cell for key, cell in row.items() if key not in columns} for row in rows_of(name)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(without("mathvista", "query", "image", "decoded_image")), "lack the columns query, decoded_image;"),
        ("[]", "hold no rows"),
        ('{"query": "?"}', "not a list of objects"),
        ("[1]", "not a list of objects"),
        ('[{"query": ', "cannot be read"),
        ('[{"query": 1}, {"query": "?"}]', "cells of different types"),
        ('[{"query": "caf\xe9"}]'.encode("latin-1"), r"not UTF-8 \(.*iconv"),
    ],
)
def test_files_that_will_not_do_are_refused_in_one_sentence(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mathvista" / "testmini.json"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        opened("mathvista", tmp_path)


def test_parquet_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    path = next(write_fixture("pope", tmp_path).rglob("*.parquet"))
    path.write_bytes(b"not Parquet")
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet cannot be read as Parquet"):
        opened("pope", tmp_path)


@pytest.mark.parametrize(
    ("name", "cells", "message"),
    [
        ("scienceqa_img", {"image": None}, "has no image"),
        ("scienceqa_img", {"answer": 3}, "is 3, of 3 choices"),
        ("scienceqa_img", {"choices": None}, "choices is not a list of texts"),
        ("docvqa", {"question": None}, "question is not a text"),
        ("docvqa", {"answers": []}, "answers is not a list of texts"),
        ("vqav2", {"answers": None}, "answers is not a list of answers"),
        ("mmbench_en_dev", {"answer": "D"}, "is none of 3 options"),
    ],
)
def test_a_row_that_lacks_what_is_asked_is_a_bad_sample(
    name: str, cells: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = rows_of(name)[0]
    path = tmp_path / name / "rows.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_list([good, {**good, **cells}]).to_parquet(str(path))
    samples = opened(name, tmp_path).samples
    assert samples[0].questions
    with pytest.raises(BadSample, match=message):
        samples[1]


def test_an_image_that_is_not_there_is_a_bad_sample_when_it_is_read(tmp_path: Path) -> None:
    folder = write_fixture("coco_captions", tmp_path)
    next((folder / "val2014").glob("*2.jpg")).unlink()
    first, second = (opened("coco_captions", tmp_path).samples[index] for index in range(2))
    assert first.read_images()
    with pytest.raises(BadSample, match=r"COCO_val2014_000000000002\.jpg cannot be read"):
        second.read_images()


def test_a_name_that_there_is_not_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'mmbench' is not a benchmark for VLMs; did you mean mmbench_en_dev"):
        open_benchmark("mmbench")
