"""Captions from data sets that `datasets` loads, here from local folders: nothing touches the hub."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from vlmkit.data.images import decode_image
from vlmkit.data.samples import BadSample
from vlmkit.data.sources.opener import open_captions
from vlmkit.errors import UserError


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    datasets.disable_progress_bars()


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def small_set(captions: Any = ("a", "b")) -> Any:
    images = [{"bytes": png(color), "path": None} for color in ("red", "blue", "lime")[: len(captions)]]
    return datasets.Dataset.from_dict({"image": images, "caption": list(captions)}).cast_column(
        "image", datasets.Image()
    )


def test_saved_data_sets(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": small_set(), "test": small_set([["x", "y"], ["z"], ["w"]])})
    both.save_to_disk(str(tmp_path / "both"))
    train, test = open_captions(f"hf:{tmp_path}/both"), open_captions(f"hf:{tmp_path}/both?split=test")
    assert (len(train), len(test)) == (2, 3)
    assert train[1].image == png("blue")
    assert train[1].captions == train.captions_only(1) == ("b",)
    assert test[0].captions == ("x", "y")
    assert (decode_image(test[2].image)[:, 0, 0] == decode_image(png("lime"))[:, 0, 0]).all()
    assert train.fingerprint != test.fingerprint
    small_set().save_to_disk(str(tmp_path / "one"))
    assert open_captions(f"hf:{tmp_path}/one").fingerprint == train.fingerprint
    with pytest.raises(UserError, match=r"was saved as one split; leave \?split= out"):
        open_captions(f"hf:{tmp_path}/one?split=test")
    with pytest.raises(UserError, match=r"has no split 'val'; choose one of train, test\."):
        open_captions(f"hf:{tmp_path}/both?split=val")


def test_a_folder_of_data_files(tmp_path: Path) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    small_set().to_parquet(tmp_path / "set" / "data" / "train-00000.parquet")
    source = open_captions(f"hf:{tmp_path}/set")
    assert [source[index].captions for index in range(2)] == [("a",), ("b",)]
    assert np.array_equal(decode_image(source[0].image), decode_image(png("red")))
    copy = pickle.loads(pickle.dumps(source))
    assert copy[1] == source[1]
    with pytest.raises(IndexError):
        source[2]


def test_columns_and_bad_rows(tmp_path: Path) -> None:
    rows = {
        "photo": [b"a", b"b", b"c", None],
        "words": ["fine", " ", '["one", "two"]', "x"],
    }
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(
        UserError, match=r"has no column that is called like .*; choose one with \?image=, of: photo, w"
    ):
        open_captions(f"hf:{tmp_path}/set")
    with pytest.raises(UserError, match=r"has no column 'text'; its columns are: photo, words\."):
        open_captions(f"hf:{tmp_path}/set?image=photo&caption=text")
    source = open_captions(f"hf:{tmp_path}/set?image=photo&caption=words")
    assert (source[0].image, source[0].captions) == (b"a", ("fine",))
    assert source[2].captions == ("one", "two")
    for index in (1, 3):
        with pytest.raises(BadSample):
            source[index]


def test_the_fingerprint_sees_captions_and_images(tmp_path: Path) -> None:
    fingerprints = set()
    for name, captions, last in (("0", ["a", "b"], b"y"), ("1", ["a", "c"], b"y"), ("2", ["a", "b"], b"z")):
        rows = {"image": [b"x", last], "caption": captions}
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / name))
        fingerprints.add(open_captions(f"hf:{tmp_path}/{name}").fingerprint)
    assert len(fingerprints) == 3


def test_what_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*args: Any, **options: Any) -> Any:
        asked.append((args, options))
        return small_set()

    monkeypatch.setattr(datasets, "load_dataset", load)
    open_captions("hf:owner/name?revision=abc&config=small&split=test")
    open_captions("hf:owner/name")
    assert asked == [
        (("owner/name", "small"), {"split": "test", "revision": "abc"}),
        (("owner/name", None), {"split": "train", "revision": None}),
    ]


@pytest.mark.parametrize("spec", ["owner/nothing", "owner/nothing?revision=abc", "{folder}/empty"])
def test_what_cannot_be_loaded_is_said_in_one_sentence(tmp_path: Path, spec: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"The data set .* cannot be loaded \(.*\); check its name") as caught:
        open_captions(f"hf:{spec.format(folder=tmp_path)}")
    assert "\n" not in str(caught.value)
