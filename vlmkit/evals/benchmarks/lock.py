"""The lock beside a benchmark's data: which revision they are, so that evaluation uses exactly that one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmkit.errors import UserError
from vlmkit.runs import write_atomically

LOCK_FILE = "vlmkit-lock.json"


@dataclass(frozen=True)
class Lock:
    """What was fetched: a data set of the hub, its commit, the split, the files with their sizes in bytes, and a digest
    of the rows."""

    hub_id: str
    revision: str
    split: str
    num_rows: int
    num_bytes: int
    files: Mapping[str, int]
    fingerprint: str

    def write(self, folder: Path) -> None:
        """Put the lock beside the data; from then on they count as whole."""
        write_atomically(folder / LOCK_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Lock | None:
        """The lock of a folder, if it has one. Raises UserError if it is damaged."""
        path = folder / LOCK_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); prepare the benchmark again (`vlmkit eval --prepare {folder.name}`)."
            ) from error

    def check_files(self, folder: Path) -> None:
        """Raise UserError unless the files are there, as long as they were."""
        for name, size in self.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                self._refuse(folder, f"{name} is missing or has another size")

    def check_rows(self, folder: Path, fingerprint: str) -> None:
        """Raise UserError unless the rows are those that were fetched."""
        if fingerprint != self.fingerprint:
            self._refuse(folder, "the rows differ")

    def _refuse(self, folder: Path, difference: str) -> None:
        raise UserError(
            f"The data in {folder} are not revision {self.revision[:12]} of {self.hub_id}, as {LOCK_FILE} says "
            f"({difference}); prepare them again (`vlmkit eval --prepare {folder.name}`), or remove that file to use "
            "them as they are."
        )
