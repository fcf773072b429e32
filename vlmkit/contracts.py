"""What the rooms agree on: the task, the source of samples, and the stream of batches. No torch at run time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch

    from vlmkit.config import OptimConfig

IGNORE_INDEX = -100
"""Label of a position that is not trained on (the convention of torch's cross entropy and of transformers)."""

IMAGE_TOKEN = "<image>"
"""Where an image stands in a question (LLaVA's convention), and the token that stands for one visual token."""

Batch = dict[str, Any]
"""One micro-batch of one rank: tensors by name, plus ``num_bad``, the number of samples that had to be replaced."""


class LossOutput(NamedTuple):
    """What one forward pass of a task returns.

    ``loss_sum`` is a scalar tensor: the loss summed (not averaged) over the micro-batch's targets.
    ``num_targets`` is how many targets that sum holds. ``metrics`` maps a name to (sum, weight), so that any
    number of micro-batches and ranks can be averaged exactly: sum of sums over sum of weights.
    """

    loss_sum: torch.Tensor
    num_targets: int
    metrics: Mapping[str, tuple[torch.Tensor | float, float]] = {}


class Task(Protocol):
    """A model with its loss, as the trainer sees it. Implementations are ``torch.nn.Module``s.

    ``state_dict`` holds weights and integer counters alike; counters are int64 buffers, which no cast to bf16 touches.
    Weights that must not be cast either are those of a module with the attribute ``keeps_float32 = True``, read by
    calling it; what it returns is no parameter itself. A task with the attribute ``frozen_in_bf16 = True`` lets the
    precision bf16 round its frozen matrices: what it exports of them is rounded too.
    """

    def begin_step(self, micro_batches: Sequence[Batch]) -> int:
        """Run every collective of an optimizer step and return its number of targets over all micro-batches and ranks.

        Called once a step, before its first forward pass, with all micro-batches of this rank on the device, in the
        order in which they will be passed forward. It may run the model, under the same autocast as a forward pass.
        """
        ...

    def __call__(self, batch: Batch) -> LossOutput:
        """The loss of one micro-batch, computed inside ``forward`` (sharded weights are whole only there)."""
        ...

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        """Trainable parameters as optimizer groups: ``name``, ``params``, ``lr`` (peak), ``weight_decay``, and where
        values are to stay in a range, ``limits`` (lowest, highest)."""
        ...

    def shard_units(self) -> list[torch.nn.Module]:
        """Modules that FSDP2 shards one by one (usually transformer blocks)."""
        ...

    def validation_metrics(self, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """Held-out metrics of one batch as (sum, weight); changes no state."""
        ...

    def export(self, directory: str) -> None:
        """Write the model in the ecosystem's own layout to ``directory``, which exists. Called with whole weights."""
        ...


SampleT_co = TypeVar("SampleT_co", covariant=True)


@runtime_checkable
class Source(Protocol[SampleT_co]):
    """A sized, random-access sequence of samples.

    ``fingerprint`` is a hex digest of everything that decides the samples: equal fingerprint, equal samples.
    """

    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> SampleT_co: ...


class BatchStream(Protocol):
    """Training batches whose position is one integer: the number of samples consumed by all ranks so far."""

    global_batch_size: int
    """Samples of one optimizer step, over all ranks and micro-batches."""
    micro_batches_per_step: int
    """Micro-batches of one optimizer step on each rank."""

    def batches(self, samples_seen: int) -> Iterator[Batch]:
        """Endless iterator over this rank's micro-batches, starting where ``samples_seen`` samples are consumed."""
        ...
