"""Benchmarks whose questions are rows of a published table: what each file of this room says of its own, and how the
rows are found, checked and read."""

from __future__ import annotations

import json
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from vlmkit.data.cells import read_image
from vlmkit.data.samples import BadSample, ConversationSample
from vlmkit.data.sources.hub import undecoded
from vlmkit.data.sources.image_folder import ImageFolder
from vlmkit.data.sources.table_files import read_rows
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks.benchmark import Benchmark, Question
from vlmkit.evals.benchmarks.location import Location, find_data
from vlmkit.evals.scoring.case import ScoringRule

Row = Mapping[str, Any]

_PROBED_ROWS = 64
_ROWS_AT_ONCE = 1000


class Join(NamedTuple):
    """Images that are a table of their own: the configuration that holds it, the column of the questions that names an
    image, and the column of the images that it is equal to."""

    config: str
    key: str
    image_key: str


def all_images(row: Row, images: Row) -> Sequence[Any]:
    """The cells of all image columns, in order."""
    return list(images.values())


@dataclass(frozen=True)
class TableBenchmark:
    """A benchmark as its file describes it.

    ``hub_ids`` are the names of the data set on the Hugging Face hub, the present one first; the rows are a ``split``
    of its configuration ``config`` (None: its only one, or all). ``columns`` and ``image_columns`` must be there;
    ``identity`` and the ``optional`` ones may be. ``questions`` makes the questions of a row, given the identity of its
    sample: the cell of the column ``identity``, else the number of the row. ``images`` chooses the image cells of a
    question, given both parts of its row: files as they are stored, paths, or lists of them. ``image_url`` is where
    preparing fetches an image from that is no part of the data set, and the path it is put at. ``max_new_tokens`` is
    the room for an answer where the answerer's own is short.
    """

    name: str
    hub_ids: tuple[str, ...]
    split: str
    columns: tuple[str, ...]
    questions: Callable[[str, Row], Sequence[Question]]
    rule: ScoringRule
    config: str | None = None
    image_columns: tuple[str, ...] = ("image",)
    identity: str | None = None
    optional: tuple[str, ...] = ()
    images: Callable[[Row, Row], Sequence[Any]] = all_images
    join: Join | None = None
    image_url: Callable[[Row], tuple[str, str]] | None = None
    max_new_tokens: int | None = None

    @property
    def configs(self) -> tuple[str | None, ...]:
        """The configurations of the data set that are read: that of the questions, and that of the images if apart."""
        return (self.config, self.join.config) if self.join else (self.config,)

    def open(self, directory: Path | None = None) -> Benchmark[AskedSample]:
        """The benchmark on the data in ``directory/NAME`` (None: in the cache); no network is asked.

        Raises UserError where they are missing, empty, lack columns, or are not the revision that was prepared.
        """
        location = find_data(self.name, self.hub_ids, self.split, self.configs, directory)
        return Benchmark(
            self.name, TableSamples(self, location), _questions, self.rule, max_new_tokens=self.max_new_tokens
        )


@dataclass(frozen=True)
class AskedSample(ConversationSample):
    """Images with the questions that a benchmark asks about them, each by itself; there are no turns."""

    questions: tuple[Question, ...] = ()


def _questions(sample: AskedSample) -> Sequence[Question]:
    return sample.questions


class TableSamples:
    """A source with a sample for each row of a benchmark's table.

    The fingerprint is the commit of the data set where it is known, else a digest of the rows and of some images. A row
    without what the benchmark needs is a BadSample.
    """

    def __init__(self, benchmark: TableBenchmark, location: Location) -> None:
        self._benchmark = benchmark
        self._where = f"The data of {benchmark.name} in {location.folder}"
        self._files = ImageFolder(location.folder)
        rows = read_rows(location.folder, location.files[0])
        images = read_rows(location.folder, location.files[1]) if benchmark.join else rows
        key = [benchmark.join.key] if benchmark.join else []
        self._check_columns(rows, [*benchmark.columns, *key, *([] if benchmark.join else benchmark.image_columns)])
        if benchmark.join:
            self._check_columns(images, [benchmark.join.image_key, *benchmark.image_columns])
        if not len(rows):
            raise UserError(f"{self._where} hold no rows; fetch them again (`vlmkit eval --prepare {benchmark.name}`).")
        extra = [column for column in (benchmark.identity, *benchmark.optional) if column in rows.column_names]
        self._texts = rows.select_columns(list(dict.fromkeys([*benchmark.columns, *key, *extra])))
        self._images = images.select_columns(list(benchmark.image_columns)) if benchmark.image_columns else None
        for column in benchmark.image_columns:
            self._images = undecoded(self._images, column)
        self._image_rows = _numbers(images, benchmark.join.image_key) if benchmark.join else None
        digest = self.digest() if location.lock or not location.revision else ""
        if location.lock is not None:
            location.lock.check_rows(location.folder, digest)
        self.fingerprint = location.revision or f"sha256:{digest}"

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> AskedSample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = self._texts[index]
        name = self._benchmark.identity
        identity = str(index if name is None or row.get(name) in (None, "") else row[name])
        questions = tuple(self._benchmark.questions(identity, row))
        images = tuple(partial(read_cell, cell, self._files) for cell in self._cells(index, row))
        return AskedSample(identity, images, (), True, questions)

    def rows(self) -> Iterator[Row]:
        """The rows without their images."""
        for batch in self._texts.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
            yield from batch.to_pylist()

    def digest(self) -> str:
        """A digest of the columns that must be there, over all rows, and of some of the images."""
        digest = sha256()
        try:
            for row in self.rows():
                chosen = {column: row[column] for column in self._benchmark.columns}
                digest.update(json.dumps(chosen, sort_keys=True, default=str).encode())
        except UnicodeDecodeError as error:
            raise UserError(f"{self._where} are not UTF-8 ({error.reason}); fetch them again.") from error
        for index in range(0, len(self), max(1, len(self) // _PROBED_ROWS)):
            try:
                for cell in self._cells(index, self._texts[index]):
                    digest.update(read_cell(cell, self._files))
            except BadSample:
                digest.update(b"bad")
        return digest.hexdigest()

    def _cells(self, index: int, row: Row) -> list[Any]:
        cells = list(_flat(self._benchmark.images(row, self._image_row(index, row))))
        if not cells:
            raise BadSample(f"row {index} of {self._benchmark.name} has no image")
        return cells

    def _image_row(self, index: int, row: Row) -> Row:
        if self._images is None:
            return {}
        join = self._benchmark.join
        if join is None or self._image_rows is None:
            return self._images[index]
        number = self._image_rows.get(row[join.key])
        if number is None:
            raise BadSample(f"the image {row[join.key]!r} of row {index} of {self._benchmark.name} is not in the data")
        return self._images[number]

    def _check_columns(self, rows: Any, needed: Sequence[str]) -> None:
        missing = [column for column in dict.fromkeys(needed) if column not in rows.column_names]
        if missing and len(rows):
            raise UserError(
                f"{self._where} lack the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; there are: "
                f"{', '.join(rows.column_names)}."
            )


def _numbers(rows: Any, key: str) -> dict[Any, int]:
    return {value: number for number, value in enumerate(rows[key])}


def _flat(cells: Sequence[Any]) -> Iterator[Any]:
    for cell in cells:
        if isinstance(cell, list):
            yield from _flat(cell)
        elif cell is not None and cell != "":
            yield cell


def read_cell(cell: Any, files: ImageFolder) -> bytes:
    """The bytes of an image file that a cell holds: as they are, in base64 (as TSV files do), or by a path.

    Raises BadSample if there is none.
    """
    if isinstance(cell, str) and "." not in cell:  # a path has a suffix, and base64 knows no full stop
        try:
            return b64decode(cell, validate=True)
        except Base64Error as error:
            raise BadSample(f"an image cell is neither a path nor base64 ({error})") from error
    return read_image(cell, files)
