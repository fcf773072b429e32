"""Shared memory in which loader processes hand over batches, and which is used again once a batch is gone.

torch moves every tensor that leaves a process into shared memory made for it, and getting fresh pages from the system
takes several times as long as filling them.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import get_worker_info

from vlmkit.contracts import Batch
from vlmkit.errors import UserError

SLOTS = 16
"""Batches of one process that may be under way or in use at the same time; more of them take the ordinary way."""

_ALIGNMENT = 64
_TAKEN = "_slot"


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

    def stack(self) -> torch.Tensor:
        """The rows as one tensor, in memory of its own."""
        return self.stack_into(torch.empty(self.shape, dtype=self.dtype))

    def stack_into(self, out: torch.Tensor) -> torch.Tensor:
        """Fill ``out`` with the rows, and return it."""
        if out.dtype == torch.uint8:  # pixels, whose channels may come last in memory: torch takes twice as long
            np.stack([row.numpy() for row in self], out=out.numpy())
        else:
            torch.stack(self, out=out)
        return out


def stack_rows(rows: Sequence[torch.Tensor]) -> torch.Tensor | Rows:
    """``rows`` for a batch: one tensor; in a loader process still rows, which ``BatchSlots.place`` makes one."""
    return Rows(rows) if get_worker_info() else Rows(rows).stack()


class BatchSlots:
    """The slots of ``num_workers`` loader processes; made before these start, and handed to them.

    A process places a batch in one of its slots; the process that trains marks the slot as free when the last tensor
    of the batch is gone there. A slot has one writer and one reader, and a flag that says whose turn it is.
    Making it and placing a batch raise UserError where shared memory is full.
    """

    def __init__(self, num_workers: int) -> None:
        self._taken = _shared(torch.zeros(num_workers, SLOTS, dtype=torch.uint8))
        self._memory: dict[int, torch.Tensor] = {}

    def place(self, batch: Batch, worker: int) -> Batch:
        """The batch with its tensors copied, and its rows stacked, to a free slot of this process, if there is one."""
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor | Rows)}
        free = (self._taken[worker] == 0).nonzero()
        if not tensors or not len(free):
            return {name: value.stack() if isinstance(value, Rows) else value for name, value in batch.items()}
        slot = int(free[0])
        self._taken[worker, slot] = 1
        return {**batch, **_copy_into(self._room(slot, tensors), tensors), _TAKEN: (worker, slot)}

    def received(self, batch: Batch) -> Batch:
        """The batch as it was before it was placed; its slot is free again when nothing of it is left."""
        taken = batch.pop(_TAKEN, None)
        if taken is not None:
            tensor = next(value for value in batch.values() if isinstance(value, torch.Tensor))
            if tensor.is_pinned():  # a copy, which the loader has made
                self._free(taken)
            else:
                weakref.finalize(tensor.untyped_storage(), self._free, taken).atexit = False
        return batch

    def _room(self, slot: int, tensors: Mapping[str, torch.Tensor | Rows]) -> torch.Tensor:
        """The slot's memory, uint8; made anew, with some to spare, where it is too small."""
        needed = sum(_aligned(tensor.nbytes) for tensor in tensors.values())
        if slot not in self._memory or len(self._memory[slot]) < needed:
            self._memory[slot] = _shared(torch.empty(needed + needed // 4, dtype=torch.uint8))
        return self._memory[slot]

    def _free(self, taken: tuple[int, int]) -> None:
        self._taken[taken] = 0


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        raise UserError(
            f"Shared memory is full: no room for {tensor.nbytes / 1e6:.0f} MB of a batch; give it more (docker: "
            "--shm-size), or set fewer train.num_workers or a smaller train.micro_batch_size."
        ) from error


def _copy_into(room: torch.Tensor, tensors: Mapping[str, torch.Tensor | Rows]) -> dict[str, torch.Tensor]:
    copies, start = {}, 0
    for name, tensor in tensors.items():
        copy = room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        copies[name] = tensor.stack_into(copy) if isinstance(tensor, Rows) else copy.copy_(tensor)
        start += _aligned(tensor.nbytes)
    return copies


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
