"""Fetches the data of benchmarks from the Hugging Face hub, at one revision, and locks them to it: the only part of
evaluation that uses the network."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import TableBenchmark, table_benchmark
from vlmkit.evals.benchmarks.location import Location, benchmark_folder, choose_files
from vlmkit.evals.benchmarks.lock import LOCK_FILE, Lock
from vlmkit.evals.benchmarks.table import TableSamples

_IMAGES_AT_ONCE = 8
_PATIENCE = 60
"""Seconds that a server may say nothing."""


@dataclass(frozen=True)
class Download:
    """The files of one benchmark at one commit of its data set, with their sizes in bytes, and where they go."""

    benchmark: TableBenchmark
    hub_id: str
    revision: str
    files: dict[str, int]
    folder: Path

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())


def plan_downloads(names: Sequence[str], directory: Path | None = None, revision: str | None = None) -> list[Download]:
    """What fetching benchmarks would transfer, at a revision of their data sets (None: the newest).

    Asks the hub for the list of files. Raises UserError for a benchmark that there is not, and where the hub cannot be
    reached or has not got the files.
    """
    return [_plan(table_benchmark(name), directory, revision) for name in names]


def download(planned: Download) -> Lock:
    """Fetch the files, open them, and lock the folder to their revision; files that are there already are kept.

    Raises UserError where the network fails or the data are not what the benchmark needs; the next attempt goes on from
    what is there.
    """
    from huggingface_hub import HfApi

    benchmark, folder, hub = planned.benchmark, planned.folder, HfApi()
    (folder / LOCK_FILE).unlink(missing_ok=True)
    for name in planned.files:
        try:
            hub.hf_hub_download(planned.hub_id, name, repo_type="dataset", revision=planned.revision, local_dir=folder)
        except Exception as error:  # the hub's client raises those of several libraries
            raise UserError(
                f"{name} of {planned.hub_id} cannot be fetched ({_reason(error)}); try again, what is here is kept."
            ) from error
    files = choose_files(list(planned.files), benchmark.split, benchmark.configs)
    samples = TableSamples(benchmark, Location(folder, files, planned.revision))
    if benchmark.image_url is not None:
        _fetch_images([benchmark.image_url(row) for row in samples.rows()], folder)
    lock = Lock(
        planned.hub_id,
        planned.revision,
        benchmark.split,
        len(samples),
        planned.num_bytes,
        planned.files,
        samples.digest(),
    )
    lock.write(folder)
    return lock


def _plan(benchmark: TableBenchmark, directory: Path | None, revision: str | None) -> Download:
    hub_id, info = _dataset_info(benchmark, revision)
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or ()}
    chosen = choose_files(list(sizes), benchmark.split, benchmark.configs)
    if not all(chosen):
        raise UserError(
            f"{hub_id} at {info.sha} has no tables of the split {benchmark.split}, so {benchmark.name} cannot be "
            "prepared from it; name another --revision."
        )
    files = {name: sizes[name] for names in chosen for name in names}
    return Download(benchmark, hub_id, info.sha, files, benchmark_folder(benchmark.name, directory))


def _dataset_info(benchmark: TableBenchmark, revision: str | None) -> tuple[str, Any]:
    """The first of a benchmark's data sets that the hub has, as (id, its files with their sizes)."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    for hub_id in benchmark.hub_ids:
        try:
            return hub_id, HfApi().dataset_info(hub_id, revision=revision, files_metadata=True)
        except RepositoryNotFoundError:
            continue
        except Exception as error:  # the hub's client raises those of several libraries
            raise UserError(
                f"The hub does not answer about {hub_id} ({_reason(error)}); check the network and the revision, or "
                "put the files into a folder yourself and name it with --data-dir (docs/benchmarks.md)."
            ) from error
    raise UserError(
        f"The hub has no data set {' or '.join(benchmark.hub_ids)} that you may read; see docs/benchmarks.md for where "
        f"{benchmark.name} is published."
    )


def _fetch_images(addresses: Sequence[tuple[str, str]], folder: Path) -> None:
    """Put the image of each (path, address) into the folder, where it is not there yet."""

    def fetch(path_and_url: tuple[str, str]) -> None:
        path, url = folder / path_and_url[0], path_and_url[1]
        if not path.resolve().is_relative_to(folder.resolve()) or not url.startswith(("http://", "https://")):
            raise UserError(f"The image {path_and_url[0]} at {url} is not one to fetch; check the rows in {folder}.")
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        try:
            with urlopen(url, timeout=_PATIENCE) as answer:
                scratch.write_bytes(answer.read())
        except OSError as error:  # urllib's errors are among them
            raise UserError(f"{url} cannot be fetched ({_reason(error)}); try again, what is here is kept.") from error
        scratch.rename(path)

    with ThreadPoolExecutor(_IMAGES_AT_ONCE) as pool:
        for _ in pool.map(fetch, addresses):
            pass


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".rstrip(".: ")
