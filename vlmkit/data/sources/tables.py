"""Captioned images listed in files: CSV and TSV, Parquet, and JSON lines beside a folder of images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from vlmkit.data.cells import CAPTION_NAMES, IMAGE_NAMES, find_column, is_list_of_texts
from vlmkit.data.patterns import find_paths
from vlmkit.data.sources.arrow_rows import COLUMNS, ArrowCaptions
from vlmkit.data.sources.image_folder import ImageFolder
from vlmkit.errors import UserError

Progress = Callable[[int, int], None]

_CSV_BLOCK_BYTES = 16 * 2**20
_CSV_CELL_BYTES = 2**16
"""Longer cells of several lines are what a quote that is never closed has swallowed."""
_ROWS_AT_ONCE = 1024


def csv_captions(
    file: str, image: str | None = None, caption: str | None = None, root: str | None = None, sep: str | None = None
) -> ArrowCaptions:
    """The rows of a CSV file with a header: paths of images (relative to ``root``, else to the file) and captions.

    Columns that are not named are found by their usual names. ``sep`` is the separator, by default a comma, or a tab if
    the name ends in ``.tsv``. Rows with another number of cells than the header has come last, as BadSamples. Raises
    UserError if the file cannot be read, lacks a column, or has a quote that is never closed.
    """
    path = Path(file).expanduser()
    separator = sep or ("\t" if path.suffix.lower() == ".tsv" else ",")
    columns = _csv_columns(path, separator)
    names = _choose(columns, image, caption, str(path))
    settings = {"kind": "csv", "columns": names, "separator": separator}
    images = ImageFolder(Path(root).expanduser() if root else path.parent)
    convert = partial(_convert_csv, path, columns, names, separator)
    return ArrowCaptions([path], settings, convert, images, "name their folder with ?root=DIR")


def parquet_captions(
    pattern: str,
    image: str | None = None,
    caption: str | None = None,
    root: str | None = None,
    progress: Progress | None = None,
) -> ArrowCaptions:
    """The rows of Parquet files: images as bytes, as a struct of bytes and path, or as paths (relative to ``root``,
    else to the file that names them).

    ``pattern`` is a file, a folder, a glob, or one with braces. Parquet cannot be read row by row, so the two columns
    are copied into the cache directory at first, uncompressed; ``progress`` hears how many of the files are. Raises
    UserError if a file cannot be read, a column is missing, or its type is of no use.
    """
    paths = [Path(path) for path in find_paths(pattern, ".parquet")]
    if not paths:
        raise UserError(f"No Parquet files found at {pattern}; give a file, a folder, or a pattern that matches.")
    with _open_parquet(paths[0]) as first:
        schema = first.schema_arrow
    names = _choose(schema.names, image, caption, str(paths[0]))
    _check_types(schema, names, paths[0])
    wanted = _columns_of(schema, names, paths[0])
    folder = Path(root).expanduser() if root else paths[0].parent
    # Paths are kept as they are seen from one folder; without a root, that depends on where the files lie.
    prefixes = ["" if root else _prefix(path.parent, folder) for path in paths]
    settings = {"kind": "parquet", "columns": names, **({"prefixes": prefixes} if any(prefixes) else {})}
    convert = partial(_convert_parquet, paths, prefixes, names, wanted, progress)
    return ArrowCaptions(paths, settings, convert, ImageFolder(folder), "name their folder with ?root=DIR")


def jsonl_captions(file: str, images: str | None = None) -> ArrowCaptions:
    """The lines of a JSONL file, each an object with the path of an image (relative to ``images``, else to the file).

    The path is under ``image``, ``file_name`` or another usual name; captions are under ``caption``, ``captions``,
    ``text`` or another, a text or a list of texts. Lines that are none of this are BadSamples. Raises UserError if the
    file cannot be read, or none of its lines can be used.
    """
    path = Path(file).expanduser()
    folder = ImageFolder(Path(images).expanduser() if images else path.parent)
    convert = partial(_convert_jsonl, path)
    return ArrowCaptions([path], {"kind": "jsonl"}, convert, folder, "name their folder with ?images=DIR")


def _choose(columns: Sequence[str], image: str | None, caption: str | None, where: str) -> list[str]:
    return [
        find_column(columns, image, IMAGE_NAMES, "image", where),
        find_column(columns, caption, CAPTION_NAMES, "caption", where),
    ]


class _SkippedRow(NamedTuple):
    """A row of another length than the header: its number, the header being row 1, and how many bytes it has."""

    number: int
    size: int


def _open_csv(
    path: Path, separator: str, columns: Sequence[str] = (), skipped: list[_SkippedRow] | None = None
) -> pa_csv.CSVStreamingReader:
    """A reader of a file, with ``columns`` as texts; rows of the wrong length go to ``skipped``."""

    def skip(row: Any) -> str:
        if skipped is not None:
            skipped.append(_SkippedRow(row.number, len(row.text)))
        return "skip"

    try:
        return pa_csv.open_csv(
            path,
            read_options=pa_csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=skip),
            # Cells that are no UTF-8 spoil their rows, not the file.
            convert_options=pa_csv.ConvertOptions(check_utf8=False, column_types=dict.fromkeys(columns, pa.string())),
        )
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a CSV or TSV file.") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a CSV file with a header ({error}); check it, and its ?sep=.") from error


def _csv_columns(path: Path, separator: str) -> list[str]:
    with _open_csv(path, separator) as opened:
        try:
            return list(opened.schema.names)
        except UnicodeDecodeError as error:
            raise UserError(
                f"The header of {path} is not UTF-8 ({error.reason}); convert the file, e.g. with iconv -f UTF-16 "
                "-t UTF-8, or -f LATIN1."
            ) from error


def _convert_csv(path: Path, columns: Sequence[str], names: Sequence[str], separator: str) -> pa.RecordBatchReader:
    schema = pa.schema([(column, pa.string()) for column in COLUMNS])
    chosen = [columns.index(name) for name in names]

    def batches() -> Iterator[pa.RecordBatch]:
        skipped: list[_SkippedRow] = []
        done = 0
        try:
            with _open_csv(path, separator, columns, skipped) as reader:
                for batch in reader:
                    _refuse_open_quotes(path, batch, done, skipped)
                    done += len(batch)
                    yield pa.record_batch([batch.column(index) for index in chosen], schema)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            raise _open_quote(path, _csv_row(done, skipped)) from error  # it has swallowed a whole block
        yield pa.record_batch([pa.nulls(len(skipped), pa.string())] * 2, schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _refuse_open_quotes(path: Path, batch: pa.RecordBatch, done: int, skipped: Sequence[_SkippedRow]) -> None:
    """Raise UserError if a cell of the batch (``done`` rows come before it), or a skipped row, has swallowed others."""
    for row in skipped:
        if row.size > _CSV_CELL_BYTES:
            raise _open_quote(path, row.number)
    for column in batch.columns:
        long = pa_compute.indices_nonzero(pa_compute.greater(pa_compute.binary_length(column), _CSV_CELL_BYTES))
        for index in long.to_pylist():
            if b"\n" in column[index].as_buffer().to_pybytes():
                raise _open_quote(path, _csv_row(done + index, skipped))


def _csv_row(index: int, skipped: Sequence[_SkippedRow]) -> int:
    """The number in the file, its header being row 1, of a row that was not skipped."""
    number = index + 2
    for row in skipped:
        number += row.number <= number
    return number


def _open_quote(path: Path, row: int) -> UserError:
    return UserError(
        f"{path} has a quote that is never closed, or a cell of more than {_CSV_CELL_BYTES // 1024} KB in several "
        f"lines; check row {row} (the header is row 1)."
    )


def _open_parquet(path: Path) -> pa_parquet.ParquetFile:
    try:
        return pa_parquet.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as Parquet ({reason}); check the path, or fetch it again.") from error


def _columns_of(schema: pa.Schema, names: list[str], path: Path) -> pa.Schema:
    """COLUMNS with the types that the columns called ``names`` have."""
    image, caption = names
    chosen = _choose(schema.names, image, caption, str(path))
    return pa.schema([(column, _plain(schema.field(name).type)) for name, column in zip(chosen, COLUMNS, strict=True)])


def _plain(data_type: pa.DataType) -> pa.DataType:
    """The type without dictionaries, which are another way of storing the same."""
    if pa.types.is_dictionary(data_type):
        return data_type.value_type
    return pa.list_(_plain(data_type.value_type)) if pa.types.is_list(data_type) else data_type


def _prefix(folder: Path, base: Path) -> str:
    """What leads from ``base`` to the files of ``folder``; empty if they are the same."""
    relative = os.path.relpath(folder, base)
    return "" if relative == os.curdir else f"{relative}/"


def _prefixed(images: pa.Array, prefix: str) -> pa.Array:
    """The images, with ``prefix`` before those that are relative paths."""
    if not prefix:
        return images
    if pa.types.is_struct(images.type):
        names = [field.name for field in images.type]
        parts = [_prefixed(images.field(name), prefix if name == "path" else "") for name in names]
        return pa.StructArray.from_arrays(parts, fields=list(images.type), mask=images.is_null())
    if not _is_text(images.type):
        return images
    start = pa.scalar(prefix, images.type)
    joined = pa_compute.binary_join_element_wise(start, images, pa.scalar("", images.type))
    return pa_compute.if_else(pa_compute.match_substring_regex(images, "^(/|$)"), images, joined)


def _check_types(schema: pa.Schema, names: list[str], path: Path) -> None:
    image, caption = (_plain(schema.field(name).type) for name in names)
    cell_types = [field.type for field in image] if pa.types.is_struct(image) else [image]
    if not any(map(_is_bytes, cell_types)) and not any(map(_is_text, cell_types)):
        raise UserError(
            f"Column {names[0]!r} of {path} has the type {image}, which holds no images; choose another with ?image=."
        )
    if not _is_text(caption.value_type if pa.types.is_list(caption) or pa.types.is_large_list(caption) else caption):
        raise UserError(
            f"Column {names[1]!r} of {path} has the type {caption}, which holds no captions; "
            "choose another with ?caption=."
        )


def _is_bytes(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type))


def _is_text(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def _convert_parquet(
    paths: Sequence[Path], prefixes: Sequence[str], names: list[str], schema: pa.Schema, progress: Progress | None
) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        for done, (path, prefix) in enumerate(zip(paths, prefixes, strict=True), 1):
            with _open_parquet(path) as file:
                if _columns_of(file.schema_arrow, names, path) != schema:
                    raise UserError(f"The columns of {path} have other types than those of {paths[0]}; convert one.")
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names):
                    images, captions = (batch[name].cast(field.type) for name, field in zip(names, schema, strict=True))
                    yield pa.record_batch([_prefixed(images, prefix), captions], schema)
            if progress is not None:
                progress(done, len(paths))

    return pa.RecordBatchReader.from_batches(schema, batches())


def _convert_jsonl(path: Path) -> pa.RecordBatchReader:
    schema = pa.schema([(COLUMNS[0], pa.string()), (COLUMNS[1], pa.list_(pa.string()))])

    def batches() -> Iterator[pa.RecordBatch]:
        rows: list[tuple[str | None, list[str | None] | None]] = []
        usable, keys = False, ""
        with path.open("rb") as lines:
            for line in lines:
                if not line.strip():
                    continue
                record = _parse(line)
                keys = keys or ", ".join(record)
                rows.append((_image_of(record), _captions_of(record)))
                usable = usable or None not in rows[-1]
                if len(rows) == _ROWS_AT_ONCE:
                    yield _batch(rows, schema)
                    rows = []
        if not usable:
            raise UserError(
                f"No line of {path} is an object with an image ({', '.join(IMAGE_NAMES)}) and a caption "
                f"({', '.join(CAPTION_NAMES)}); the first has: {keys or 'nothing'}."
            )
        yield _batch(rows, schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _batch(rows: Sequence[tuple[str | None, list[str | None] | None]], schema: pa.Schema) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [(), ()]
    return pa.record_batch([pa.array(cells, field.type) for cells, field in zip(columns, schema, strict=True)], schema)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _image_of(record: dict[str, Any]) -> str | None:
    found = (record[name] for name in IMAGE_NAMES if name in record)
    image = next(found, None)
    return image if isinstance(image, str) else None


def _captions_of(record: dict[str, Any]) -> list[str | None] | None:
    found = (record[name] for name in CAPTION_NAMES if name in record)
    captions = next(found, None)
    captions = [captions] if isinstance(captions, str) else captions
    return captions if is_list_of_texts(captions) else None
