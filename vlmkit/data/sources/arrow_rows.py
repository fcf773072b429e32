"""Captions from a table of any size: its two columns, put into an Arrow file once, which is mapped into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmkit.data.cells import image_path, read_captions, read_image
from vlmkit.data.disk_cache import cache_folder, read_or_build
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.data.sources.image_folder import ImageFolder
from vlmkit.errors import UserError

COLUMNS = ("image", "caption")
Convert = Callable[[], pa.RecordBatchReader]
"""Reads the rows of a table as batches of the two columns COLUMNS (see vlmkit.data.cells)."""

_VERSION = 2
_ROWS, _HEADER = "rows.arrow", "header.json"
_HASHED_BYTES = 2**20
_PROBED_ROWS = 64


class ArrowCaptions:
    """A source of caption samples from the rows of a table. Cheap to copy to other processes, which map it again.

    A row whose image or caption is missing or unusable is a BadSample. The fingerprint covers the content of ``files``
    and the sizes of some of the images that lie apart.

    Args:
        files: what the table is made of; the Arrow file is kept in the cache directory as long as they do not change.
        settings: everything else that decides the rows.
        convert: reads the table, where the cache has not got it.
        images: the folder of images that are given as paths.
        remedy: what to do if they are not there, for the error message.

    Raises UserError if a file cannot be read, there are no rows, or none of the images looked at is there.
    """

    def __init__(
        self, files: Sequence[Path], settings: Mapping[str, Any], convert: Convert, images: ImageFolder, remedy: str
    ) -> None:
        self._where = str(files[0])
        self._images = images
        described = json.dumps([_VERSION, dict(settings), [_describe(file) for file in files]])
        directory = cache_folder("tables") / sha256(described.encode()).hexdigest()
        read_or_build(directory, self._map, partial(_build, files=files, settings=settings, convert=convert))
        if not len(self):
            raise UserError(f"{self._where} holds no rows; give a table with one image a row, and its captions.")
        sizes = images.probe(self._some_paths(), remedy)
        self.fingerprint = sha256(json.dumps([self._content, sizes]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> CaptionSample:
        captions = self.captions_only(index)
        return CaptionSample(read_image(self._cell("image", index), self._images), captions)

    def captions_only(self, index: int) -> tuple[str, ...]:
        """The captions of a row, whose image is not read."""
        return read_captions(self._cell("caption", index))

    def _cell(self, column: str, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        try:
            value = self._columns[COLUMNS.index(column)][index].as_py()
        except UnicodeDecodeError as error:
            raise BadSample(f"the {column} in row {index} of {self._where} is not UTF-8 ({error})") from error
        if value is None:
            raise BadSample(f"row {index} of {self._where} has no {column}, or cannot be read")
        return value

    def _some_paths(self) -> list[str]:
        """Paths in evenly spaced rows; none where some of these hold their images."""
        paths = []
        for index in range(0, len(self), max(1, len(self) // _PROBED_ROWS)):
            try:
                path = image_path(cell := self._cell("image", index))
            except BadSample:
                continue  # reported when it is read
            if path is None and cell:
                return []
            if path is not None:
                paths.append(path)
        return paths

    def _map(self, directory: Path) -> None:
        header = json.loads((directory / _HEADER).read_text(encoding="utf-8"))
        table = pa.ipc.open_file(pa.memory_map(str(directory / _ROWS))).read_all()
        self._content: str = header["content"]
        self._columns = [table[column] for column in COLUMNS]
        self._directory = directory

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_columns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map(self._directory)


def _describe(file: Path) -> list[str | int]:
    try:
        with file.open("rb") as opened:  # of a folder, or without permission, there is a status but nothing to read
            status = os.fstat(opened.fileno())
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); check the path.") from error
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def _build(directory: Path, files: Sequence[Path], settings: Mapping[str, Any], convert: Convert) -> None:
    try:
        reader = convert()
        with pa.OSFile(str(directory / _ROWS), "wb") as sink, pa.ipc.new_file(sink, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    except pa.ArrowInvalid as error:
        raise UserError(f"{files[0]} cannot be read ({str(error).splitlines()[0]}); repair or replace it.") from error
    digest = sha256(json.dumps(dict(settings)).encode())
    for file in files:
        with file.open("rb") as content:
            while chunk := content.read(_HASHED_BYTES):
                digest.update(chunk)
    (directory / _HEADER).write_text(json.dumps({"content": digest.hexdigest()}), encoding="utf-8")
