"""All captions of a source in one pass: how many hold each token, kept on disk."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from safetensors.numpy import load, save

from vlmkit.contracts import Source
from vlmkit.data.caption_text import repair
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.errors import UserError

if TYPE_CHECKING:
    from vlmkit.data.caption_tokenizers.base import CaptionTokenizer

PassProgress = Callable[[int, int], None]
"""Hears (samples read, samples in all) during a pass over a source."""

_VERSION = 1
"""Goes up when the same captions would give other counts."""
_BATCH = 1024


@runtime_checkable
class CaptionsOnly(Protocol):
    """A source that gives the captions of a sample without reading its image."""

    def captions_only(self, index: int) -> tuple[str, ...]: ...


class CorpusCounts(NamedTuple):
    """How many captions of a corpus hold each token, int64 [V], and how many captions there are."""

    document_frequency: np.ndarray
    num_documents: int


def read_captions(source: Source[CaptionSample], index: int) -> tuple[str, ...]:
    """The captions of a sample, whose image stays unread where the source allows. Raises BadSample for a bad one."""
    return source.captions_only(index) if isinstance(source, CaptionsOnly) else source[index].captions


def captions_at(source: Source[CaptionSample], index: int) -> tuple[str, ...]:
    """The captions of a sample that can be trained on: none of a bad sample, and no empty one."""
    try:
        captions = read_captions(source, index)
    except BadSample:
        return ()
    return tuple(caption for caption in captions if repair(caption))


def batches_of_captions(source: Source[CaptionSample], progress: PassProgress | None = None) -> Iterator[list[str]]:
    """Every caption of every sample, in order, in batches for a tokenizer."""
    batch: list[str] = []
    for index in range(len(source)):
        batch += captions_at(source, index)
        if len(batch) >= _BATCH or index + 1 == len(source):
            yield batch
            batch = []
            if progress is not None:
                progress(index + 1, len(source))


def count_corpus(
    source: Source[CaptionSample], tokenizer: CaptionTokenizer, cache_dir: Path, progress: PassProgress | None = None
) -> CorpusCounts:
    """Count in how many captions each token occurs, masks left aside; kept in ``cache_dir`` and read from there again.

    Every caption is a document: of several captions of one image each counts, while training draws one of them an
    epoch. Captions are cut to the tokenizer's context as in training; empty ones and bad samples do not count. Several
    processes that ask at once make one pass.
    """
    key = sha256(f"{_VERSION}\n{source.fingerprint}\n{tokenizer.fingerprint}".encode()).hexdigest()

    def count() -> bytes:
        document_frequency = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        num_documents = 0
        for batch in batches_of_captions(source, progress):
            ids = [*tokenizer.bags(batch), np.empty(0, dtype=np.int64)]
            document_frequency += np.bincount(np.concatenate(ids), minlength=tokenizer.vocab_size)
            num_documents += len(batch)
        return save({"document_frequency": document_frequency, "num_documents": np.array([num_documents])})

    counts = load(kept_file(cache_dir / "token-counts" / f"{key}.safetensors", count))
    return CorpusCounts(counts["document_frequency"], int(counts["num_documents"][0]))


def kept_file(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of a file that is made once, by one process, and there as a whole or not at all.

    Raises UserError if its folder cannot be written.
    """
    with _or_other_folder(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.is_file():
            return path.read_bytes()
        content = make()
        with _or_other_folder(path.parent):
            scratch = path.with_suffix(".part")
            scratch.write_bytes(content)
            scratch.replace(path)
        return content


@contextmanager
def _or_other_folder(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"The cache folder {folder} cannot be written ({error.strerror}); free space or rights there, or set "
            "VLMKIT_CACHE to a folder that can."
        ) from error
