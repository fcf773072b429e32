"""Training state on disk: atomic, written in the background, safetensors and JSON only.

CHECKPOINTS/
  step-00000200/
    state/*.safetensors       weights, buffers and optimizer moments, each rank its share (torch.distributed.checkpoint)
    rng-00000.safetensors     random-number state of rank 0, and so on
    trainer.json              counters, world size, sizes of all files: written last, the sign of a whole checkpoint
  step-00000400.partial/      being written; renamed when every rank is done, removed at the next start if it never was
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from vlmkit.errors import UserError
from vlmkit.training import rng
from vlmkit.training.distributed import DistributedContext

logger = logging.getLogger(__name__)

_MARKER = "trainer.json"
_PARTIAL = ".partial"


def tensors_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The live tensors training changes, by name: buffers and trainable weights (``model.``), moments (``optim.``).

    Frozen weights are left out, with all that describes how they are held (the scales of four-bit ones): a resumed run
    makes them again from its recipe.
    """
    state = module.state_dict()  # first: its hooks put the sharded parameters back in place after a forward pass
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    kept = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    kept |= {name for name, _ in module.named_buffers(remove_duplicate=False)}
    tensors = {f"model.{name}": value for name, value in state.items() if name in kept}
    for parameter, moments in optimizer.state.items():
        tensors |= {f"optim.{names[parameter]}.{key}": value for key, value in moments.items()}
    return tensors


def whole_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first; anything half-written, cut short or foreign is left out."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in found if re.fullmatch(r"step-\d{8,}", path.name) and _is_whole(path))


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / _MARKER).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return False
    return sizes == _file_sizes(checkpoint)


def _file_sizes(directory: Path) -> dict[str, int]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != _MARKER)
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in files}


class Checkpointer:
    """Saves and restores what training changes in ``module`` and ``optimizer``; all methods are collective.

    A save copies the state to CPU memory and returns; one background thread writes it, over a process group of its own
    (on the default group its collectives would interleave with training's, and deadlock). A failed write is raised by
    the next ``wait`` or ``save`` on every rank, and leaves the checkpoints before it untouched.
    """

    def __init__(
        self,
        directory: Path,
        context: DistributedContext,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        keep: int,
        asynchronous: bool,
    ) -> None:
        self.directory = directory
        self.context = context
        self.module = module
        self.optimizer = optimizer
        self.keep = keep
        self.asynchronous = asynchronous
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """Whether the write in the background has failed; never waits."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def restore(self, seed: int) -> tuple[dict[str, Any], bytes | None] | None:
        """Load the newest whole checkpoint in place; None if there is none. Dead partial writes are removed.

        Returns the saved counters and this rank's random-number state, to be restored once the loader runs. That state
        is None at another world size than the saved one, where only a fresh seed from (seed, rank, step) makes sense.
        """
        path = self.context.on_main(self._newest, self._group)
        if path is None:
            return None
        tensors = tensors_of(self.module, self.optimizer)
        try:
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path / "state")), process_group=self._group)
        except CheckpointException as error:
            reason = next(iter(error.failures.values()))[0]
            raise UserError(
                f"The checkpoint {path} does not fit this model or cannot be read ({reason}); "
                "remove it to resume from the one before, or give another run directory."
            ) from error
        saved = json.loads((path / _MARKER).read_text())
        if saved["world_size"] == self.context.world_size:
            return saved["state"], (path / _rng_name(self.context.rank)).read_bytes()
        if self.context.is_main:
            logger.warning(
                "Resuming a run of %d process(es) with %d: the samples come in the same order, but dropout is seeded "
                "anew from (seed %d, rank, step %d), so the losses will not be bit-equal to the run's own.",
                saved["world_size"],
                self.context.world_size,
                seed,
                saved["state"]["step"],
            )
        return saved["state"], None

    def _newest(self) -> Path | None:
        for leftover in self.directory.glob(f"*{_PARTIAL}"):
            shutil.rmtree(leftover)
        return next(reversed(whole_checkpoints(self.directory)), None)

    def save(self, state: dict[str, Any]) -> None:
        """Save all tensors, this process's random-number state and the plain ``state`` (with its ``step``).

        Raises:
            UserError: the write before this one, or this one if not asynchronous, failed (disk full, no permission).
        """
        self.wait()
        live = tensors_of(self.module, self.optimizer)
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in live.items()}
        self._pending = self._thread.submit(self._write, tensors, rng.capture(self.context.device), dict(state))
        if not self.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Until the pending write, if any, is on disk; raises its failure."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """End the background thread after the write it is at; raises nothing of that write's failure."""
        self._thread.shutdown()
        dist.destroy_process_group(self._group)

    def _write(self, tensors: dict[str, Tensor], rng_state: bytes, state: dict[str, Any]) -> None:
        final = self.directory / f"step-{state['step']:08d}"
        partial = final.with_name(final.name + _PARTIAL)
        try:
            self.context.together(lambda: self._write_rng(partial, rng_state), self._group)
            writer = HuggingFaceStorageWriter(str(partial / "state"), save_distributed=True)
            dcp.save(tensors, storage_writer=writer, process_group=self._group)
            self.context.on_main(lambda: self._commit(partial, final, state), self._group)
        except (OSError, CheckpointException) as error:
            if self.context.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise self._explain(error, final) from error

    def _write_rng(self, partial: Path, rng_state: bytes) -> None:
        partial.mkdir(parents=True, exist_ok=True)
        _write_durably(partial / _rng_name(self.context.rank), rng_state)

    def _commit(self, partial: Path, final: Path, state: dict[str, Any]) -> None:
        record = {
            "state": state,
            "world_size": self.context.world_size,
            "torch": torch.__version__,
            "files": _file_sizes(partial),
        }
        _write_durably(partial / _MARKER, json.dumps(record, indent=1).encode())
        for directory in (partial / "state", partial):
            _sync_directory(directory)
        if final.exists():  # of the same step, but not whole, or it would have been resumed from
            shutil.rmtree(final)
        partial.rename(final)
        _sync_directory(self.directory)
        for old in whole_checkpoints(self.directory)[: -self.keep]:
            shutil.rmtree(old.rename(old.with_name(old.name + _PARTIAL)))

    def _explain(self, error: BaseException, final: Path) -> BaseException:
        """The failure as a sentence for the user where the disk is at fault, as it is where the code is."""
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        if not isinstance(cause, OSError):
            return RuntimeError(f"writing {final} failed: {cause}")
        whole = whole_checkpoints(self.directory)
        usable = f"{whole[-1].name} is whole and will be resumed from" if whole else "no earlier one exists"
        return UserError(
            f"The checkpoint {final} could not be written ({cause.strerror or cause}); {usable}: "
            "make room or mend the path, then run the same command again."
        )


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}.safetensors"


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    """Make renames and new names in ``directory`` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
