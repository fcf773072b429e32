"""Rows of a table that lies in Parquet, TSV, CSV or JSON files, in the layout of data sets on the Hugging Face hub."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any

from vlmkit.errors import UserError

_KINDS = ((".parquet",), (".tsv", ".csv"), (".jsonl", ".json"))
"""What the files of a table end in; where there are several kinds, the first is the table."""
_SHARD = re.compile(r"-\d+-of-(\d+)$")


def table_paths(paths: Iterable[str]) -> list[str]:
    """Those of the paths that are tables, in order: of one kind, outside hidden folders."""
    visible = sorted(path for path in paths if not any(part.startswith(".") for part in PurePosixPath(path).parts))
    for kind in _KINDS:
        found = [path for path in visible if PurePosixPath(path).suffix.lower() in kind]
        if found:
            return found
    return []


def split_paths(paths: Sequence[str], split: str, config: str | None = None) -> list[str]:
    """Those of the tables that hold a split of a configuration, as the hub names them: ``CONFIG/SPLIT-*`` (``data/``
    where there is one configuration)."""
    return [
        path
        for path in paths
        if (config is None or config in PurePosixPath(path).parts[:-1])
        and (PurePosixPath(path).stem == split or PurePosixPath(path).stem.startswith(f"{split}-"))
    ]


def missing_shards(paths: Sequence[str]) -> int:
    """How many files of a split are not there, where their names (``-00000-of-00003``) say how many there should be."""
    shards = Counter(
        (_SHARD.sub("", path.removesuffix(PurePosixPath(path).suffix)), int(match[1]))
        for path in paths
        if (match := _SHARD.search(PurePosixPath(path).stem))
    )
    return sum(total - there for (_, total), there in shards.items())


def read_rows(folder: Path, paths: Sequence[str]) -> Any:
    """The rows of files of one kind, as a ``datasets.Dataset``; Parquet is kept on disk, the others in memory.

    All cells of TSV and CSV are texts. Raises UserError, naming the file, for what cannot be read.
    """
    import datasets

    files = [folder / path for path in paths]
    if files[0].suffix.lower() == ".parquet":
        try:
            return datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        except Exception as error:  # its builder wraps what pyarrow raises in errors of its own
            cause = str(error.__cause__ or error).strip().partition("\n")[0]
            raise UserError(
                f"{', '.join(map(str, files))} cannot be read as Parquet ({cause}); fetch the data again."
            ) from error
    listed = [row for file in files for row in _listed(file)]
    columns = list(dict.fromkeys(column for row in listed for column in row))
    try:
        return datasets.Dataset.from_dict({column: [row.get(column) for row in listed] for column in columns})
    except (ValueError, TypeError) as error:  # pyarrow's errors are among them
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"The rows of {files[0]} have cells of different types ({reason}); correct the file."
        ) from error


def _listed(file: Path) -> list[dict[str, Any]]:
    readers: dict[str, Callable[[str], Iterable[Any]]] = {
        ".tsv": lambda text: _separated(text, "\t"),
        ".csv": lambda text: _separated(text, ","),
        ".json": json.loads,
        ".jsonl": lambda text: [json.loads(line) for line in text.split("\n") if line.strip()],
    }
    try:
        rows = readers[file.suffix.lower()](file.read_text(encoding="utf-8-sig"))
        listed: list[Any] = list(rows) if not isinstance(rows, dict) else [None]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}); convert it, e.g. with iconv -t UTF-8."
        ) from error
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}); correct the file or fetch it again.") from error
    if not all(isinstance(row, dict) for row in listed):
        raise UserError(f"{file} is not a list of objects, one a row; give the table in that form.")
    return listed


def _separated(text: str, separator: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(sys.maxsize)  # images stand in cells, in base64
    yield from csv.DictReader(StringIO(text, newline=""), delimiter=separator, strict=True, restval="")
