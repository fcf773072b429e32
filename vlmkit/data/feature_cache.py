"""Features of a frozen tower, computed once and kept on disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vlmkit.contracts import Source
from vlmkit.data.images import EvalTransform, PadTransform, decode_image
from vlmkit.data.samples import BadSample, CaptionSample, ConversationSample, Image, evenly_spaced
from vlmkit.errors import UserError

FEATURES, HEADER, OFFSETS = "features.bin", "header.json", "offsets.npy"
ImageFunction = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [B, 3, S, S] -> features [B, ...], e.g. patches [B, P, C] or pooled [B, C]."""
Imaged = Source[ConversationSample] | Source[CaptionSample]
Preprocessing = Literal["pad", "crop"]

_TRANSFORMS: dict[str, type[PadTransform] | type[EvalTransform]] = {"pad": PadTransform, "crop": EvalTransform}
_DESCRIPTIONS = {
    "pad": "pad to a square, resize to {size}",
    "crop": "resize the shorter side to {size}, crop the centre",
}

_PROBED_SAMPLES = 1000
"""Samples whose images are counted to tell how many a source has; they are not read."""

_log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Where feature caches live: ``$VLMKIT_CACHE`` or ``~/.cache/vlmkit``, folder ``features``."""
    return Path(os.environ.get("VLMKIT_CACHE") or Path.home() / ".cache" / "vlmkit") / "features"


def cache_bytes(source: Imaged, shape: Sequence[int], dtype: torch.dtype = torch.float16) -> int:
    """What the cache of a source takes on disk, and what is held against the limit, before anything is computed.

    ``shape`` is that of one image's features. Exact where all samples have equally many images; else they are counted
    in a thousand samples.
    """
    return round(_images_per_sample(source) * len(source)) * math.prod(shape) * dtype.itemsize


def _images_per_sample(source: Imaged) -> float:
    counts = []
    sample: CaptionSample | ConversationSample
    for sample in evenly_spaced(source, _PROBED_SAMPLES):  # type: ignore[assignment]
        if isinstance(sample, CaptionSample):
            return 1.0
        counts.append(len(sample.images))
    return sum(counts) / len(counts) if counts else 1.0


class FeatureCache:
    """Features of every sample of a source: ``cache[index]`` is [I, ...] for its I images, None for none.

    Raises BadSample for a sample whose images could not be read when the cache was built. A whole cache is one folder,
    ``directory``: the numbers, read by memory map, the first row of each sample, and a JSON header.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        header = json.loads((directory / HEADER).read_text())
        self._bad = frozenset(header["bad"])
        self._offsets = np.load(directory / OFFSETS)
        self._shape = tuple(header["shape"])
        self._dtype = np.dtype(header["dtype"])
        self._rows = self._map()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's features."""
        return self._shape[1:]

    def _map(self) -> np.ndarray:
        if 0 in self._shape:
            return np.zeros(self._shape, self._dtype)
        return np.memmap(self.directory / FEATURES, dtype=self._dtype, mode="r", shape=self._shape)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> torch.Tensor | None:
        if index in self._bad:
            raise BadSample(f"sample {index} has an image that could not be read when its features were computed")
        start, stop = self._offsets[index], self._offsets[index + 1]
        return torch.from_numpy(np.array(self._rows[start:stop])) if stop > start else None

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[Path]]:
        # A loader worker maps the file again; a pickled map would be a copy of everything.
        return FeatureCache, (self.directory,)


def open_feature_cache(
    source: Imaged,
    compute: ImageFunction,
    image_size: int,
    key: Mapping[str, str],
    max_bytes: float,
    *,
    preprocessing: Preprocessing = "pad",
    dtype: torch.dtype = torch.float16,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache | None:
    """The cache for this source and key, built first if there is none.

    None, and a warning, if it takes more than ``max_bytes`` by ``cache_bytes``.

    ``key`` says what ``compute`` does, e.g. the tower's fingerprint and what is kept of its features; together
    with the source's fingerprint, the preprocessing and the ``dtype`` kept (float16 or float32) it names the cache.
    ``preprocessing`` is what the loader does that takes the features in place of images: "pad" (``PadTransform``) or
    "crop" (``EvalTransform``). ``progress`` hears (samples done, of all).

    A cache appears whole or not at all, and of several processes that want it at once one builds and the others
    wait. Raises UserError if the disk is full.
    """
    described = {
        **key,
        # Of a mixture, the samples without their weights: another mixture of the same sources has the same features.
        "source": getattr(source, "samples_fingerprint", source.fingerprint),
        "preprocessing": _DESCRIPTIONS[preprocessing].format(size=image_size),
        "dtype": str(dtype),
    }
    name = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    directory = cache_root() / name

    def fits(shape: Sequence[int]) -> bool:
        size = cache_bytes(source, shape, dtype)
        if size > max_bytes:
            _log.warning(
                "No feature cache: it takes %.2f GB, above the limit of %.2f GB (--cache-limit); "
                "the tower runs in every step instead.",
                size / 1e9,
                max_bytes / 1e9,
            )
        return size <= max_bytes

    with _locked(directory):
        if not directory.is_dir():
            scratch = directory.with_suffix(".part")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            try:
                pixels = _Pixels(source, _TRANSFORMS[preprocessing](image_size))
                if not _build(scratch, pixels, compute, dtype, fits, batch_size, num_workers, progress):
                    return None
                scratch.rename(directory)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise UserError(
                    f"The disk of {cache_root()} is full and the feature cache cannot be written; free space, set "
                    "VLMKIT_CACHE to another disk, or train with feature_cache=false."
                ) from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            return FeatureCache(directory)
    cache = FeatureCache(directory)
    return cache if fits(cache.shape) else None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Pixels(Dataset[torch.Tensor | None]):
    """The images of each sample as uint8 [I, 3, S, S]; None where one of them is bad."""

    def __init__(self, source: Imaged, transform: PadTransform | EvalTransform) -> None:
        self._source = source
        self._transform = transform

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> torch.Tensor | None:
        try:
            images = [self._transform(decode_image(image)) for image in _images(self._source[index])]
        except BadSample as error:
            _log.info("sample %d has no features: %s", index, error)
            return None
        size = self._transform.size
        return torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)


def _images(sample: ConversationSample | CaptionSample) -> list[Image]:
    return [sample.image] if isinstance(sample, CaptionSample) else sample.read_images()


def _as_list(samples: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return samples


def _build(
    scratch: Path,
    pixels: _Pixels,
    compute: ImageFunction,
    dtype: torch.dtype,
    fits: Callable[[Sequence[int]], bool],
    batch_size: int,
    num_workers: int,
    progress: Callable[[int, int], None] | None,
) -> bool:
    """Write a whole cache into ``scratch``; False, with nothing written, where features of this shape do not fit."""
    counts: list[int] = []
    bad: list[int] = []
    shape: tuple[int, ...] = (0, 0)
    loader = DataLoader(
        pixels,
        batch_size,
        num_workers=num_workers,
        collate_fn=_as_list,
        generator=torch.Generator(),
    )
    with (scratch / FEATURES).open("wb") as file:
        for batch in loader:
            bad += [len(counts) + i for i, images in enumerate(batch) if images is None]
            counts += [0 if images is None else len(images) for images in batch]
            readable = [images for images in batch if images is not None and len(images)]
            if readable:
                features = compute(torch.cat(readable)).to("cpu", dtype).numpy()
                if not file.tell() and not fits(features.shape[1:]):
                    return False
                shape = features.shape[1:]
                features.tofile(file)
            if progress is not None:
                progress(len(counts), len(pixels))
        file.flush()
        os.fsync(file.fileno())
    header = {"shape": [sum(counts), *shape], "dtype": str(dtype).removeprefix("torch."), "bad": bad}
    np.save(scratch / OFFSETS, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    (scratch / HEADER).write_text(json.dumps(header))
    return True
