"""Processes, and how they share a model: one path for a single process and for many under torchrun.

A single process gets a process group of size one whose store lives in its own memory, so collectives, FSDP2 and
torch's distributed checkpoints are the same code everywhere.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from vlmkit.config import TrainConfig
from vlmkit.contracts import Batch, Task
from vlmkit.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """The small picklable ``value`` of every rank, in rank order, on every rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=group)
        return values

    def together(self, action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Run ``action`` here; if it fails on any rank, every rank raises that failure.

        A rank that raised alone would leave its peers waiting in their next collective.
        """
        failure: Exception | None = None
        try:
            result = action()
        except Exception as error:
            failure = error
        failures = self.gather(_portable(failure, self.rank), group)
        if failure is not None:
            raise failure
        for other in failures:
            if other is not None:
                raise other
        return result

    def on_main(self, action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Run ``action`` on rank 0 alone and return its small picklable result, or raise its failure, everywhere."""
        result = self.together(lambda: action() if self.is_main else None, group)
        return cast(T, self.gather(result, group)[0])


def _portable(failure: Exception | None, rank: int) -> Exception | None:
    """``failure`` in a form that survives pickling."""
    if failure is None or type(failure) in (UserError, OSError):
        return failure
    if isinstance(failure, OSError):
        return OSError(failure.errno, failure.strerror or str(failure))
    return RuntimeError(f"rank {rank} failed: {type(failure).__name__}: {failure}")


def setup(device: Literal["auto", "cpu", "cuda"] = "auto") -> DistributedContext:
    """Join the process group, or start one of size one; a later call returns the same context.

    Under torchrun (``RANK`` and ``WORLD_SIZE`` are set) ranks talk over NCCL for CUDA tensors and gloo for CPU tensors.

    Raises:
        UserError: CUDA is asked for and absent, or a node has fewer GPUs than processes.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    place = _device(device, local_rank)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(teardown)  # gloo's threads abort an interpreter that exits over them
    return DistributedContext(rank, world_size, local_rank, place)


def teardown() -> None:
    """Leave the process group. Happens by itself when the program ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if name == "cuda" and not gpus:
        raise UserError("The device cuda was asked for, but torch sees no NVIDIA GPU here; use device cpu or auto.")
    if name == "cpu" or not gpus:
        return torch.device("cpu")
    if local_rank >= gpus:
        raise UserError(
            f"This node runs more processes than its {gpus} GPU(s); start torchrun with --nproc-per-node {gpus}, "
            "or use device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def place(task: Task, train: TrainConfig, context: DistributedContext) -> nn.Module:
    """The task's module on its device, with its weights in the types they train in; done again, it changes nothing.

    Trainable weights are float32 whatever the precision; bf16 only computes in bf16. With bf16, the frozen matrices of
    a task that says so (``frozen_in_bf16``) are held in bf16. Frozen vectors stay as they are, so norms and biases are
    exact and cost nothing, and so do weights with ``keeps_float32``.
    """
    module = cast(nn.Module, task)
    rounds = train.precision == "bf16" and getattr(task, "frozen_in_bf16", False)
    exact = {p for part in module.modules() if getattr(part, "keeps_float32", False) for p in part.parameters()}
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif rounds and parameter.is_floating_point() and parameter.ndim > 1 and parameter not in exact:
            parameter.data = parameter.data.to(torch.bfloat16)
    return module.to(context.device)


def wrap(task: Task, train: TrainConfig, context: DistributedContext) -> nn.Module:
    """The task, placed, as the module to call for a loss: bare, in DDP, or sharded in place by FSDP2.

    Every rank starts from rank 0's weights and buffers. Optimizers must be built afterwards: sharding replaces the
    parameters.

    Raises:
        UserError: on every rank: blocks are to be compiled, and a rank has no working compiler.
    """
    module = place(task, train, context)
    if context.world_size > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            value = tensor.detach().contiguous()
            dist.broadcast(value, src=0)
            tensor.data.copy_(value)
    if train.compile:
        context.together(lambda: _require_compiler(context.device))
        for unit in task.shard_units():  # in place: names of weights stay, and DDP and FSDP2 wrap what is compiled
            unit.compile()
    if train.parallel == "fsdp":
        return _shard(task, train, context)
    if context.world_size == 1:
        return module
    with warnings.catch_warnings():  # broadcast_buffers has a new name, which the oldest torch supported does not know
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers are counters that the task itself keeps equal on all ranks; sending them each step would be waste.
        return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


def _require_compiler(device: torch.device) -> None:
    """Compile something small now, so that a missing compiler is found before the data are read."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        torch.compile(torch.sin)(torch.zeros(1, device=device))
    except TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"torch.compile does not work here ({reason}); install a C++ compiler such as g++ (on a GPU also triton), "
            "or set train.compile to false."
        ) from error


def _shard(task: Task, train: TrainConfig, context: DistributedContext) -> nn.Module:
    policy = MixedPrecisionPolicy()
    if train.precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(context.device.type, (context.world_size,))
    root = cast(nn.Module, task)
    for part in root.modules():
        if getattr(part, "keeps_float32", False):
            fully_shard(part, mesh=mesh, reshard_after_forward=False)
    seen: set[nn.Module] = set()
    for module in [*task.shard_units(), root]:
        norms = [norm for norm in _batch_norms(module) if norm not in seen]
        if norms:  # they need weights of the type of their running statistics, which no policy casts
            fully_shard(norms, mesh=mesh)
        fully_shard(module, mesh=mesh, mp_policy=policy)
        seen.update(norms)
    for method in ("begin_step", "validation_metrics"):  # they may run the model, whose weights must then be whole
        register_fsdp_forward_method(root, method)
    return root


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def average_statistics(model: nn.Module) -> None:
    """Give every rank the mean of all ranks' running statistics of batch norms; collective if there are any.

    Each rank gathers them from its own samples. They are moving averages, so the mean over ranks is that of all
    samples, and taking it more often changes nothing.
    """
    statistics = [(norm.running_mean, norm.running_var) for norm in _batch_norms(model)]
    buffers = [cast(torch.Tensor, buffer) for pair in statistics for buffer in pair if buffer is not None]
    if not buffers:
        return
    mean = torch.cat(buffers)
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    for buffer, value in zip(buffers, mean.split([len(b) for b in buffers]), strict=True):
        buffer.copy_(value)


def autocast(train: TrainConfig, context: DistributedContext) -> AbstractContextManager[Any]:
    """Where forward passes run: bf16 autocast for bare and DDP models; FSDP2 casts by its own policy."""
    if train.precision == "bf16" and train.parallel != "fsdp":
        return torch.autocast(context.device.type, torch.bfloat16)
    return nullcontext()


def set_gradient_sync(model: nn.Module, enabled: bool) -> None:
    """Whether the next backward pass reduces gradients over ranks; only a step's last micro-batch needs to."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = enabled
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(enabled)


def settle(model: nn.Module, task: Task, micro_batches: Sequence[Batch]) -> None:
    """One discarded pass, for DDP alone: it changes no weight, gradient or buffer.

    After its first backward pass DDP lays its gradient buckets out anew, and from then on (with more than two ranks)
    all-reduce adds them up in another order. Without this pass the first step of a resumed run would differ in its last
    bits from the same step of the uninterrupted run.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    before = [buffer.clone() for buffer in model.buffers()]
    task.begin_step(micro_batches)
    set_gradient_sync(model, True)
    model(micro_batches[0]).loss_sum.backward()
    model.zero_grad(set_to_none=True)
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)


def aligned(batches: Iterable[T], train: TrainConfig, context: DistributedContext) -> Iterator[tuple[T, bool]]:
    """``batches`` with a flag that says whether each counts.

    A forward pass over shards is a collective, so under FSDP2 a rank that runs out repeats its last batch, not
    counted, until every rank has finished.

    Raises:
        UserError: on every rank, if some rank of a sharded model has no batch at all.
    """
    if train.parallel != "fsdp":
        yield from ((batch, True) for batch in batches)
        return
    iterator = iter(batches)
    last: T | None = None
    while True:
        batch = next(iterator, None)
        last = last if batch is None else batch
        present = context.gather((batch is not None, last is not None))
        if not any(more for more, _ in present):
            return
        if not all(some for _, some in present):
            raise UserError(
                "There are fewer held-out batches than processes; hold out more samples or use fewer ranks."
            )
        yield cast(T, last), batch is not None


@contextmanager
def whole_weights(task: Task) -> Iterator[None]:
    """Within the block, every parameter of a sharded task is whole, float32 where trained, and on the CPU of each rank.

    For exporting, not for running; a task that is not sharded is left as it is. Collective: all ranks enter together.
    """
    root = cast(nn.Module, task)
    modules = list(root.modules())
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()
    sharded: list[tuple[nn.Module, str, Any]] = [
        (module, name, parameter)
        for module in modules
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor)
    ]
    whole: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for _, _, parameter in sharded:
        if id(parameter) not in whole:
            full = parameter.full_tensor().detach().cpu()
            whole[id(parameter)] = nn.Parameter(full, requires_grad=parameter.requires_grad)
    try:
        for module, name, parameter in sharded:
            module._parameters[name] = whole[id(parameter)]
        yield
    finally:
        for module, name, parameter in sharded:
            module._parameters[name] = parameter
