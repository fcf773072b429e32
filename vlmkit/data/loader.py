"""From samples to batches: the training stream, whose position is one integer, and the ordered pass of evaluations."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vlmkit.contracts import Batch
from vlmkit.data.batch_slots import BatchSlots
from vlmkit.data.order import SampleKey, SampleOrder, order_of
from vlmkit.data.samples import BadSample
from vlmkit.errors import UserError

Load = Callable[[int, int], Any]
"""(index, epoch) -> item, or a function without arguments that makes it of what has been read.

A function of its arguments alone; either half raises BadSample where the sample cannot be used.
"""
Collate = Callable[[Sequence[Any]], Batch | list[Batch]]
"""Items -> one batch, or several that together hold them."""

MAX_SUBSTITUTES = 32
"""Substitutes tried for one bad sample before the data as a whole count as unreadable."""

_READ_TOGETHER = 32
"""Samples whose files are in memory before the first of them is decoded."""
_PREFETCH_BATCHES = 4
_NICENESS = 10
"""By how much loader processes stand back behind the one that trains."""
_log = logging.getLogger(__name__)


class Stream:
    """Shuffled, endless training batches; implements ``contracts.BatchStream``.

    The samples of an optimizer step are the next ``global_batch_size`` keys of the source's order (``order_of``; the
    number of its samples instead of the source: plainly shuffled). A rank takes every ``world_size``-th of them and
    cuts its share, in order, into micro-batches (of its whole share, if that is smaller than ``micro_batch_size``). A
    step therefore holds the same samples for any number of ranks, workers and micro-batches, and a run can continue
    from any step.

    Where ``collate`` makes several batches of the samples of a micro-batch, all of them belong to the step.

    A bad sample is replaced by one that the order picks, and counted in ``batch["num_bad"]``.

    ``load`` and ``collate`` run in ``num_workers`` processes (0: in this one), never touch global random state and
    must be picklable. Raises UserError if the source is empty or the batch does not divide among ranks and
    micro-batches; iterating raises UserError if no readable substitute turns up.
    """

    def __init__(
        self,
        load: Load,
        source: Sized | int,
        collate: Collate,
        *,
        global_batch_size: int,
        micro_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        if not source:
            raise UserError("The training source holds no samples; check where data.train points.")
        if global_batch_size % world_size:
            raise UserError(
                f"A global batch of {global_batch_size} samples cannot be shared equally by {world_size} processes; "
                f"set train.global_batch_size to a multiple of {world_size}."
            )
        share = global_batch_size // world_size
        self.micro_batch_size = min(micro_batch_size or share, share)
        if share % self.micro_batch_size:
            raise UserError(
                f"Each process's share of {share} samples is not a multiple of train.micro_batch_size "
                f"{micro_batch_size}; choose a divisor of {share}."
            )
        self.global_batch_size = global_batch_size
        self.micro_batches_per_step = share // self.micro_batch_size
        self._rank, self._world_size, self._num_workers = rank, world_size, num_workers
        self._order = order_of(source, seed)
        self._assemble = _TrainingAssembler(load, collate, self._order)

    def steps(self, samples_seen: int) -> Iterator[list[Batch]]:
        """Endless iterator over this rank's micro-batches, step by step, from where ``samples_seen`` are consumed."""
        assembled = _run(self._assemble, self._micro_batches(samples_seen), self._num_workers)
        while True:
            yield [batch for batches in islice(assembled, self.micro_batches_per_step) for batch in batches]

    def _micro_batches(self, position: int) -> Iterator[list[SampleKey]]:
        while True:
            step = list(self._order.slice(position, position + self.global_batch_size))
            yield from _chunks(step[self._rank :: self._world_size], self.micro_batch_size)
            position += self.global_batch_size


def eval_batches(
    load: Load,
    num_samples: int,
    batch_size: int,
    collate: Collate,
    *,
    num_workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """This rank's part of samples 0 to ``num_samples``, in order, each exactly once over all ranks, at epoch 0.

    Ranks may get batches of different size and number, never a repeated sample. Bad samples are left out and counted
    in ``batch["num_bad"]``. Raises UserError if this rank has samples but none of them can be read.
    """
    keys = [(index, 0) for index in range(rank, num_samples, world_size)]
    last: Batch | None = None
    num_bad = 0
    assembled = _run(_EvaluationAssembler(load, collate), _chunks(keys, batch_size), num_workers)
    for batch in chain.from_iterable(assembled):
        num_bad += batch["num_bad"]
        if batch.keys() == {"num_bad"}:
            continue
        if last is not None:
            yield last
        # One batch is held back, so that bad samples after the last good one are counted too.
        last = batch
        last["num_bad"], num_bad = num_bad, 0
    if last is not None:
        last["num_bad"] += num_bad
        yield last
    elif keys:
        raise UserError(f"None of the {len(keys)} samples to evaluate on can be read; check where that source points.")


@dataclass(frozen=True)
class _TrainingAssembler:
    load: Load
    collate: Collate
    order: SampleOrder

    def __call__(self, keys: Sequence[SampleKey]) -> list[Batch]:
        items, num_bad = list[Any](), 0
        for key, item in zip(keys, _load_all(self.load, keys), strict=True):
            is_bad = isinstance(item, BadSample)
            items.append(self._substitute(key) if is_bad else item)
            num_bad += is_bad
        return _counted(self.collate(items), num_bad)

    def _substitute(self, key: SampleKey) -> Any:
        index, epoch = key
        for attempt in range(MAX_SUBSTITUTES):
            (item,) = _load_all(self.load, [(self.order.substitute(key, attempt), epoch)])
            if not isinstance(item, BadSample):
                return item
        raise UserError(
            f"Sample {index} and all {MAX_SUBSTITUTES} substitutes tried for it cannot be read (the last: {item}); "
            "check the training data."
        )


@dataclass(frozen=True)
class _EvaluationAssembler:
    load: Load
    collate: Collate

    def __call__(self, keys: Sequence[SampleKey]) -> list[Batch]:
        """The good samples with the number of bad ones, which is all there is if none is good."""
        items = [item for item in _load_all(self.load, keys) if not isinstance(item, BadSample)]
        return _counted(self.collate(items) if items else {}, len(keys) - len(items))


def _load_all(load: Load, keys: Sequence[SampleKey]) -> Iterator[Any]:
    """The item of each key, or the BadSample that says why there is none."""
    for some in _chunks(keys, _READ_TOGETHER):
        # Read in a row: between images, which fill the caches, work as small as this takes several times as long.
        read = [(index, _unless_bad(index, partial(load, index, epoch))) for index, epoch in some]
        for index, item in read:
            yield _unless_bad(index, item) if callable(item) else item


def _unless_bad(index: int, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except BadSample as error:
        _log.info("sample %d cannot be used: %s", index, error)
        return error


def _counted(collated: Batch | list[Batch], num_bad: int) -> list[Batch]:
    """The batches, of which the first counts the bad samples."""
    first, *others = collated if isinstance(collated, list) else [collated]
    return [{**first, "num_bad": num_bad}, *({**batch, "num_bad": 0} for batch in others)]


def _chunks(keys: Sequence[SampleKey], size: int) -> Iterator[list[SampleKey]]:
    return (list(keys[start : start + size]) for start in range(0, len(keys), size))


Assemble = Callable[[Sequence[SampleKey]], list[Batch]]


class _Assembled(Dataset[list[Batch] | UserError]):
    """Batches addressed by their sample keys, so that all work on a batch happens in one worker.

    A UserError is returned, not raised: the loader would bury its sentence in the worker's traceback.
    """

    def __init__(self, assemble: Assemble, slots: BatchSlots) -> None:
        self._assemble = assemble
        self._slots = slots

    def __getitem__(self, keys: Sequence[SampleKey]) -> list[Batch] | UserError:
        worker = get_worker_info()
        try:
            batches = self._assemble(keys)
            return [self._slots.place(batch, worker.id) for batch in batches] if worker else batches
        except UserError as error:
            return error


def _run(assemble: Assemble, batches_of_keys: Iterable[list[SampleKey]], num_workers: int) -> Iterator[list[Batch]]:
    pin = torch.cuda.is_available()
    slots = BatchSlots(num_workers, pin)
    loader = DataLoader(
        _Assembled(assemble, slots),
        sampler=batches_of_keys,
        batch_size=None,
        collate_fn=_identity,
        num_workers=num_workers,
        prefetch_factor=_PREFETCH_BATCHES if num_workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=pin,
        # Without a generator of its own the loader draws from the global one, and resumed dropout masks differ.
        generator=torch.Generator(),
    )
    for assembled in loader:
        if isinstance(assembled, UserError):
            raise assembled
        yield [slots.received(batch) for batch in assembled]


def _identity(assembled: Any) -> Any:
    return assembled


def _prepare_worker(worker_id: int) -> None:
    # The cores are shared out by processes; threads in which each tokenizes would only get into the others' way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Where cores are scarce, the process that trains must not wait for one that its loaders hold.
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    # Ctrl-C reaches the whole process group; workers must live until the trainer has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
