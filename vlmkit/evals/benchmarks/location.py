"""Where a benchmark's data lie on this machine: in a folder of the user's, where preparing puts them, or in the hub's
own cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmkit.data.disk_cache import cache_folder
from vlmkit.data.sources.table_files import missing_shards, split_paths, table_paths
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks.lock import LOCK_FILE, Lock


@dataclass(frozen=True)
class Location:
    """The folder of a benchmark's data, the files of each configuration relative to it, and, where it is known, the
    commit that they are, with the lock that says so."""

    folder: Path
    files: tuple[list[str], ...]
    revision: str | None = None
    lock: Lock | None = None


def benchmark_folder(name: str, directory: Path | None) -> Path:
    """Where the data of a benchmark are put and looked for: ``DIR/NAME``, by default in vlmkit's cache."""
    return (directory.expanduser() if directory else cache_folder("benchmarks")) / name


def find_data(
    name: str, hub_ids: Sequence[str], split: str, configs: Sequence[str | None], directory: Path | None
) -> Location:
    """The data of a benchmark, in ``directory`` if it is given, else in the cache of vlmkit or of the hub.

    With a lock they are the files that it names. Else they are the tables that are called after split and
    configuration, or, of a single configuration, all the tables there are. Raises UserError where files are missing.
    """
    folder = benchmark_folder(name, directory)
    lock = Lock.read(folder)
    if lock is not None:
        lock.check_files(folder)
        return Location(folder, choose_files(list(lock.files), split, configs), lock.revision, lock)
    files = _files_in(folder, split, configs)
    if not any(files) and directory is None:
        cached = _cached_snapshot(hub_ids)
        if cached is not None and all(found := _files_in(cached, split, configs)):
            return Location(cached, _whole(name, cached, found), revision=cached.name)
    if not any(files):
        option = f" --data-dir {directory}" if directory else ""
        elsewhere = "" if directory else f", or name the folder that holds {name}/ with --data-dir"
        raise UserError(
            f"There are no data of {name} in {folder}; get them with `vlmkit eval --prepare {name}{option}`{elsewhere}."
        )
    return Location(folder, _whole(name, folder, files))


def choose_files(paths: Sequence[str], split: str, configs: Sequence[str | None]) -> tuple[list[str], ...]:
    """The tables among the paths that hold a split of each configuration, by their names."""
    tables = table_paths(paths)
    return tuple(split_paths(tables, split, config) for config in configs)


def _files_in(folder: Path, split: str, configs: Sequence[str | None]) -> tuple[list[str], ...]:
    relative = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    paths = [path for path in relative if path != LOCK_FILE]
    chosen = choose_files(paths, split, configs)
    return (table_paths(paths),) if len(configs) == 1 and not chosen[0] else chosen


def _whole(name: str, folder: Path, files: tuple[list[str], ...]) -> tuple[list[str], ...]:
    missing = sum(map(missing_shards, files))
    if missing or not all(files):
        what = f"{missing} files" if missing else "a part"
        raise UserError(
            f"The data of {name} in {folder} lack {what}; fetch them again (`vlmkit eval --prepare {name}`)."
        )
    return files


def _cached_snapshot(hub_ids: Sequence[str]) -> Path | None:
    """The newest snapshot of a data set in the hub's cache; other programs keep theirs there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for hub_id in hub_ids:
        try:
            return Path(snapshot_download(hub_id, repo_type="dataset", local_files_only=True))
        except LocalEntryNotFoundError:
            continue
    return None
