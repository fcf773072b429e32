"""Images that lie as files in folders: read by name, or labelled by the folder they are in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from vlmkit.data.samples import BadSample, LabelledSample
from vlmkit.errors import UserError

ATTRIBUTE = "class"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_PROBED_IMAGES = 64


class ImageFolder:
    """Image files by their paths relative to a folder; absolute paths stand for themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes:
        """The file as it is. Raises BadSample if it cannot be read."""
        try:
            return (self.folder / name).read_bytes()
        except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
            reason = error.strerror if isinstance(error, OSError) else error
            raise BadSample(f"{self.folder / name} cannot be read ({reason})") from error

    def probe(self, names: Sequence[str], remedy: str) -> list[int]:
        """Sizes of some of the files, evenly spaced, -1 where one is missing; to tell one set of images from another.

        Raises UserError, ending in ``remedy``, if none of them is there.
        """
        paths = [self.folder / name for name in names[:: max(1, len(names) // _PROBED_IMAGES)]]
        sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
        if sizes and max(sizes) < 0:
            raise UserError(f"The images are not there, e.g. {paths[0]}; {remedy}.")
        return sizes


class LabelledFolder:
    """A source of labelled samples: the images of each subfolder of ``directory``, which is named like its class.

    Classes are in alphabetical order, or in that of ``classes.txt`` (one a line) beside ``directory``, so that splits
    lacking a class agree with the others. The only attribute is ``class``. Raises UserError if there is nothing to
    read or a subfolder is not among the listed classes.
    """

    def __init__(self, directory: str) -> None:
        root = Path(directory).expanduser()
        if not root.is_dir():
            raise UserError(f"There is no folder {root}; give the folder that holds one subfolder a class.")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        names = _class_names(root, [folder.name for folder in folders])
        self.classes = {ATTRIBUTE: names}
        self._files = [
            (path, names.index(folder.name))
            for folder in folders
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not self._files:
            raise UserError(f"No images found in the subfolders of {root}; it should hold one subfolder a class.")
        listing = [(path.relative_to(root).as_posix(), path.stat().st_size) for path, _ in self._files]
        self.fingerprint = sha256(json.dumps([names, listing]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> LabelledSample:
        path, label = self._files[index]
        try:
            return LabelledSample(path.read_bytes(), {ATTRIBUTE: label})
        except OSError as error:
            raise BadSample(f"{path} cannot be read ({error.strerror})") from error


def _class_names(root: Path, folders: list[str]) -> list[str]:
    listed = root.resolve().parent / "classes.txt"
    if not listed.is_file():
        return folders
    names = listed.read_text(encoding="utf-8").split("\n")
    names = [name.strip() for name in names if name.strip()]
    for folder in folders:
        if folder not in names:
            raise UserError(f"The folder {root / folder} is not a class of {listed}; add it there or move it away.")
    return names
