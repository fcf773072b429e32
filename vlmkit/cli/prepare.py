"""``vlmkit eval --prepare``: says what will be fetched, fetches it, and says what is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from vlmkit.cli.output import print_json, print_note, print_table, print_text


def prepare_benchmarks(names: str, directory: Path | None, revision: str | None, as_json: bool) -> None:
    """Fetch the data of benchmarks, whose names are separated by commas, after a table of their sizes."""
    from vlmkit.pipelines.evaluation.prepare_benchmarks import download, plan_downloads

    planned = plan_downloads([name.strip() for name in names.split(",") if name.strip()], directory, revision)
    if not as_json:
        print_table(
            "To be fetched",
            ["benchmark", "data set", "revision", "split", "files", "size"],
            [
                (p.benchmark.name, p.hub_id, p.revision[:12], p.benchmark.split, len(p.files), _size(p.num_bytes))
                for p in planned
            ],
            [
                f"The images of {p.benchmark.name} come from the addresses in its rows, in addition."
                for p in planned
                if p.benchmark.image_url is not None
            ],
        )
    locks = {}
    for one in planned:
        name = one.benchmark.name
        print_note(f"{name}: {len(one.files)} files, {_size(one.num_bytes)}, into {one.folder}")
        locks[name] = lock = download(one)
        if not as_json:
            print_text(f"{name}: {lock.num_rows} rows at revision {lock.revision[:12]}, in {one.folder}")
    if as_json:
        print_json({name: asdict(lock) for name, lock in locks.items()})


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
