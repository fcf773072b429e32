"""Shared memory in which loader processes hand over batches, and which is used again once a batch is gone.

torch moves every tensor that leaves a process into shared memory made for it, and getting fresh pages from the system
takes several times as long as filling them. The process that trains then asks the other one for this memory; where all
cores are busy, an answer takes as long as the system lets others run: milliseconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from vlmkit.contracts import Batch
from vlmkit.errors import UserError

SLOTS = 16
"""Batches of one process that may be under way or in use at the same time; more of them take the ordinary way."""

_ALIGNMENT = 64
_TAKEN = "_slot"
_ROOM = "_room"


class Rows(list[torch.Tensor]):
    """Tensors [...] of equal shape and type that are to be one, [B, ...], and know what room it takes."""

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self[0].shape

    @property
    def dtype(self) -> torch.dtype:
        return self[0].dtype

    @property
    def nbytes(self) -> int:
        return len(self) * self[0].nbytes

    @property
    def strides(self) -> tuple[int, ...]:
        """Of one tensor, in which channels come last in memory where they do so in all rows, as in decoded images: to
        put them first would take seven times as long as copying."""
        channels_last = all(row.ndim == 3 and row.stride(0) == 1 for row in self)
        return _strides(self.shape, torch.channels_last if channels_last else torch.contiguous_format)

    def stack(self) -> torch.Tensor:
        """The rows as one tensor, in memory of its own."""
        return self.stack_into(torch.empty_strided(self.shape, self.strides, dtype=self.dtype))

    def stack_into(self, out: torch.Tensor) -> torch.Tensor:
        """Fill ``out`` with the rows, and return it."""
        if out.dtype == torch.uint8:  # pixels, in which torch is slower where the order in memory differs
            np.stack([row.numpy() for row in self], out=out.numpy())
        else:
            torch.stack(self, out=out)
        return out


def stack_rows(rows: Sequence[torch.Tensor]) -> torch.Tensor | Rows:
    """``rows`` for a batch: one tensor; in a loader process still rows, which ``BatchSlots.place`` makes one."""
    return Rows(rows) if get_worker_info() else Rows(rows).stack()


class _Slot(NamedTuple):
    """A slot of a process; a named tuple, because older torch turns plain ones into lists when it pins them."""

    worker: int
    number: int


class _Place(NamedTuple):
    """Where a tensor lies in the memory of a slot."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, room: torch.Tensor) -> torch.Tensor:
        return room[self.start : self.stop].view(self.dtype).as_strided(self.shape, self.strides)


class BatchSlots:
    """The slots of ``num_workers`` loader processes; made before these start, and handed to them.

    A process places a batch in one of its slots; the process that trains marks the slot as free when the last tensor
    of the batch is gone there. A slot has one writer and one reader, and a flag that says whose turn it is. Its memory
    is sent once, and later batches are sent as places in it; not with ``pin``, where the loader's own thread asks for
    the memory of each batch ahead of time and makes a pinned copy.

    Making it and placing a batch raise UserError where shared memory is full.
    """

    def __init__(self, num_workers: int, pin: bool = False) -> None:
        self._pin = pin
        self._taken = _shared(torch.zeros(num_workers, SLOTS, dtype=torch.uint8))
        self._memory: dict[int, torch.Tensor] = {}
        self._received: dict[_Slot, torch.Tensor] = {}

    def place(self, batch: Batch, worker: int) -> Batch:
        """The batch with its tensors copied, and its rows stacked, to a free slot of this process, if there is one; it
        is to be sent, and to be read by ``received``."""
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor | Rows)}
        free = (self._taken[worker] == 0).nonzero()
        if not tensors or not len(free):
            return {name: value.stack() if isinstance(value, Rows) else value for name, value in batch.items()}
        slot = int(free[0])
        self._taken[worker, slot] = 1
        places = _places(tensors)
        known = self._memory.get(slot)
        room = self._room(slot, max(place.stop for place in places.values()))
        placed = {name: _fill(place.of(room), tensors[name]) for name, place in places.items()}
        if self._pin:
            return {**batch, **placed, _TAKEN: _Slot(worker, slot)}
        return {**batch, **places, _TAKEN: _Slot(worker, slot), _ROOM: None if room is known else room}

    def received(self, batch: Batch) -> Batch:
        """The batch as it was before it was placed; its slot is free again when nothing of it is left."""
        taken = batch.pop(_TAKEN, None)
        if taken is None:
            return batch
        if self._pin:  # the tensors are copies
            self._free(taken)
            return batch
        sent = batch.pop(_ROOM)
        if sent is not None:
            self._received[taken] = sent
        # The same memory as a storage of this batch alone, whose end says that nothing of the batch is left.
        room = torch.from_numpy(self._received[taken].numpy())
        weakref.finalize(room.untyped_storage(), self._free, taken).atexit = False
        return {name: value.of(room) if isinstance(value, _Place) else value for name, value in batch.items()}

    def _room(self, slot: int, needed: int) -> torch.Tensor:
        """The slot's memory, uint8; made anew, with some to spare, where it is too small."""
        if slot not in self._memory or len(self._memory[slot]) < needed:
            self._memory[slot] = _shared(torch.empty(needed + needed // 4, dtype=torch.uint8))
        return self._memory[slot]

    def _free(self, taken: _Slot) -> None:
        self._taken[taken] = 0


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        raise UserError(
            f"Shared memory is full: no room for {tensor.nbytes / 1e6:.0f} MB of a batch; give it more (docker: "
            "--shm-size), or set fewer train.num_workers or a smaller train.micro_batch_size."
        ) from error


def _places(tensors: Mapping[str, torch.Tensor | Rows]) -> dict[str, _Place]:
    places, start = {}, 0
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        strides = tensor.strides if isinstance(tensor, Rows) else _strides(shape)
        places[name] = _Place(start, start + tensor.nbytes, tensor.dtype, shape, strides)
        start += _aligned(tensor.nbytes)
    return places


def _strides(shape: tuple[int, ...], memory_format: torch.memory_format = torch.contiguous_format) -> tuple[int, ...]:
    return torch.empty(shape, device="meta", memory_format=memory_format).stride()


def _fill(out: torch.Tensor, tensor: torch.Tensor | Rows) -> torch.Tensor:
    return tensor.stack_into(out) if isinstance(tensor, Rows) else out.copy_(tensor)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
