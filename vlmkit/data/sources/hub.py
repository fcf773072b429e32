"""Data sets of the Hugging Face hub, or in local folders that ``datasets`` can load, as sources of captions."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlmkit.data.cells import CAPTION_NAMES, IMAGE_NAMES, find_column, read_captions, read_image
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.data.sources.image_folder import ImageFolder
from vlmkit.errors import UserError

_SPLIT = "train"
_PROBED_ROWS = 64


class HubCaptions:
    """A source of caption samples from a data set by its hub name, or the path of a folder of data files or of one
    that ``save_to_disk`` wrote. It is loaded as a whole (not streamed) by ``datasets``, which keeps it on disk.

    The images are files as they were stored, not decoded here; a caption is a text, a list of texts, or such a list
    written as JSON. Columns that are not named are found by their usual names. Without ``split``, it is
    ``train``. The fingerprint covers all captions and some of the images.

    Raises UserError if the data set, split, configuration or a column is not there, e.g. for want of a network.
    """

    def __init__(
        self,
        name: str,
        split: str | None = None,
        image: str | None = None,
        caption: str | None = None,
        revision: str | None = None,
        config: str | None = None,
    ) -> None:
        rows = load_rows(name, split, revision, config)
        where = f"The data set {name}"
        self._image = find_column(rows.column_names, image, IMAGE_NAMES, "image", where)
        self._caption = find_column(rows.column_names, caption, CAPTION_NAMES, "caption", where)
        self._captions = rows.select_columns([self._caption])
        self._rows = undecoded(rows.select_columns([self._image]), self._image)
        self._files = ImageFolder(Path(name).expanduser())
        if not len(self):
            raise UserError(f"{where} holds no rows; choose another ?split=.")
        self.fingerprint = self._digest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> CaptionSample:
        captions = self.captions_only(index)
        return CaptionSample(self._read_image(index), captions)

    def captions_only(self, index: int) -> tuple[str, ...]:
        """The captions of a row, whose image is not read."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return read_captions(self._captions[index][self._caption])

    def _read_image(self, index: int) -> bytes:
        return read_image(self._rows[index][self._image], self._files)

    def _digest(self) -> str:
        digest = sha256()
        for batch in self._captions.iter(batch_size=1000):
            digest.update(json.dumps(batch[self._caption], default=str).encode())
        for index in range(0, len(self), max(1, len(self) // _PROBED_ROWS)):
            try:
                digest.update(self._read_image(index))
            except BadSample:
                digest.update(b"bad")
        return digest.hexdigest()


def load_rows(name: str, split: str | None, revision: str | None, config: str | None) -> Any:
    """A split of a data set as ``datasets`` loads it. Raises UserError if it cannot be had."""
    import datasets

    path = Path(name).expanduser()
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _split_of(datasets.load_from_disk(str(path)), split, name)
        local = str(path) if path.exists() else name
        return datasets.load_dataset(local, config, split=split or _SPLIT, revision=revision)
    except UserError:
        raise
    except Exception as error:  # loaders of all kinds of files raise all kinds of errors
        raise UserError(
            f"The data set {name} cannot be loaded ({_first_line(error)}); check its name, split, revision and config, "
            "and that it is on this machine or the hub can be reached."
        ) from error


def _split_of(loaded: Any, split: str | None, name: str) -> Any:
    if not isinstance(loaded, dict):
        if split is None:
            return loaded
        raise UserError(f"The data set {name} was saved as one split; leave ?split= out.")
    if (split or _SPLIT) not in loaded:
        raise UserError(f"The data set {name} has no split {split or _SPLIT!r}; choose one of {', '.join(loaded)}.")
    return loaded[split or _SPLIT]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(". ")


def undecoded(rows: Any, column: str) -> Any:
    """The rows with the image, or list of images, of a column as it is stored."""
    import datasets

    feature = rows.features[column]
    stored = datasets.Image(decode=False)
    if isinstance(feature, datasets.Image):
        return rows.cast_column(column, stored)
    if isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
        return rows.cast_column(column, datasets.List(stored))
    return rows
