"""The stream's order over ranks, workers and resumption; bad samples; errors; the ordered pass."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from vlmkit.contracts import Batch, BatchStream
from vlmkit.data.loader import Stream, eval_batches
from vlmkit.data.samples import BadSample
from vlmkit.errors import UserError


@dataclass
class Load:
    """Yields its own key; some indices are bad, some are fatal."""

    bad: frozenset[int] = frozenset()
    wrong: frozenset[int] = frozenset()

    def __call__(self, index: int, epoch: int) -> tuple[int, int]:
        if index in self.bad:
            raise BadSample(f"sample {index} is bad")
        if index in self.wrong:
            raise UserError(f"sample {index} trains nothing")
        return index, epoch


@dataclass
class LoadInTwo(Load):
    """Returns, for most indices, a function that yields the key or finds it bad; keeps what it did."""

    done: list[str] = field(default_factory=list)

    def __call__(self, index: int, epoch: int) -> Any:
        self.done.append("read")
        return super().__call__(index, epoch) if index % 5 == 0 else lambda: self._make(index, epoch)

    def _make(self, index: int, epoch: int) -> tuple[int, int]:
        self.done.append("made")
        return super().__call__(index, epoch)


def collate(items: Sequence[tuple[int, int]]) -> Batch:
    return {"keys": torch.tensor(items)}


NONE_BAD = Load()


def in_threes(items: Any) -> list[Batch]:
    return [collate(items[start : start + 3]) for start in range(0, len(items), 3)]


def stream(load: Any = NONE_BAD, num_samples: int = 50, **settings: Any) -> Stream:
    return Stream(load, num_samples, collate, **{"global_batch_size": 12, "seed": 3, **settings})


def keys(batch: Batch) -> list[tuple[int, int]]:
    return [tuple(key) for key in batch["keys"].tolist()]


def flat(parts: Iterable[Iterable[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def take(source: Stream, steps: int, samples_seen: int = 0) -> list[list[tuple[int, int]]]:
    """Keys of each of the next steps on one rank."""
    taken = itertools.islice(source.steps(samples_seen), steps)
    return [[key for batch in step for key in keys(batch)] for step in taken]


def global_steps(world_size: int, steps: int, samples_seen: int = 0, **settings: Any) -> list[list[tuple[int, int]]]:
    """Keys of each step over all ranks, in the order that one rank would see them."""
    ranks = [
        take(stream(rank=rank, world_size=world_size, **settings), steps, samples_seen) for rank in range(world_size)
    ]
    return [[key for group in zip(*parts, strict=True) for key in group] for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize(
    ("world_size", "num_workers", "micro_batch_size", "start"),
    [(2, 0, None, 0), (4, 0, 1, 0), (1, 0, 4, 0), (1, 2, 3, 0), (2, 2, 2, 5), (1, 2, None, 17), (3, 0, 2, 29)],
)
def test_global_batches_do_not_depend_on_ranks_workers_micro_batches_or_resumption(
    world_size: int, num_workers: int, micro_batch_size: int | None, start: int
) -> None:
    straight = take(stream(), 32)
    settings = {"num_workers": num_workers, "micro_batch_size": micro_batch_size}
    assert global_steps(world_size, 3, start * 12, **settings) == straight[start : start + 3]


def test_every_epoch_is_a_new_permutation_of_all_samples() -> None:
    visited = flat(take(stream(), 25))  # 300 samples: 6 epochs of 50, most batches spanning two
    epochs = [[index for index, epoch in visited if epoch == number] for number in range(6)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert visited == sorted(visited, key=lambda key: key[1])


def test_order_depends_on_the_seed_and_not_on_global_state() -> None:
    torch.manual_seed(0)
    first = take(stream(), 5)
    torch.manual_seed(1)
    assert take(stream(), 5) == first
    assert take(stream(seed=4), 5) != first
    assert len(take(stream(seed=-1), 5)) == 5


def test_iterating_leaves_global_random_state_alone() -> None:
    for num_workers in (0, 1):
        state = torch.get_rng_state()
        take(stream(num_workers=num_workers), 1)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_source_may_be_smaller_than_a_batch() -> None:
    (step,) = take(stream(num_samples=5), 1)
    assert [epoch for _, epoch in step] == [0] * 5 + [1] * 5 + [2] * 2
    assert {index for index, epoch in step if epoch == 0} == set(range(5))


def test_stream_keeps_the_contract() -> None:
    source: BatchStream = stream(micro_batch_size=2, world_size=2)
    assert source.global_batch_size == 12
    step = next(source.steps(0))
    assert [len(batch["keys"]) for batch in step] == [2, 2, 2]
    assert [batch["num_bad"] for batch in step] == [0, 0, 0]
    (whole,) = next(stream(micro_batch_size=8, world_size=2).steps(0))  # a share smaller than a micro-batch
    assert len(whole["keys"]) == 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_collate_that_splits_makes_more_micro_batches_of_the_same_samples(num_workers: int) -> None:
    split = Stream(Load(frozenset({3})), 50, in_threes, global_batch_size=12, seed=3, num_workers=num_workers)
    whole = stream(Load(frozenset({3})))
    for parts, (batch,) in itertools.islice(zip(split.steps(0), whole.steps(0), strict=False), 6):
        assert len(parts) == 4 and flat(keys(part) for part in parts) == keys(batch)
        assert sum(part["num_bad"] for part in parts) == batch["num_bad"]


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 5"):
        stream(world_size=5)
    with pytest.raises(UserError, match="divisor of 6"):
        stream(world_size=2, micro_batch_size=4)
    with pytest.raises(UserError, match="no samples"):
        stream(num_samples=0)


def test_bad_samples_are_replaced_deterministically_and_counted() -> None:
    bad = frozenset(range(0, 50, 7))
    clean = take(stream(), 10)
    settings = {"load": Load(bad), "micro_batch_size": 3}
    batches = flat(itertools.islice(stream(**settings).steps(0), 10))
    replaced = flat(keys(batch) for batch in batches)
    expected = [sum(key[0] in bad for key in step) for step in clean]
    assert [sum(batch["num_bad"] for batch in batches[i * 4 : i * 4 + 4]) for i in range(10)] == expected
    assert sum(expected) > 5
    for before, after in zip(flat(clean), replaced, strict=True):
        assert after[0] not in bad
        assert after == before or before[0] in bad
        assert after[1] == before[1]
    assert flat(global_steps(2, 10, load=Load(bad), num_workers=2)) == replaced
    assert len({after[0] for before, after in zip(flat(clean), replaced, strict=True) if before != after}) > 3


@pytest.mark.parametrize("bad", [frozenset(), frozenset({5, 6, 70, 71})])
def test_samples_that_are_made_after_reading_are_the_same(bad: frozenset[int]) -> None:
    whole, halves = (stream(load, 100, global_batch_size=90) for load in (Load(bad), LoadInTwo(bad)))
    for (expected,), (batch,) in itertools.islice(zip(whole.steps(0), halves.steps(0), strict=False), 2):
        assert keys(batch) == keys(expected) and batch["num_bad"] == expected["num_bad"]
    whole_pass, in_halves = (list(eval_batches(load, 100, 90, collate)) for load in (Load(bad), LoadInTwo(bad)))
    assert list(map(keys, in_halves)) == list(map(keys, whole_pass))
    assert sum(batch["num_bad"] for batch in in_halves) == len(bad)


def test_several_samples_are_read_before_the_first_is_made() -> None:
    load = LoadInTwo()
    next(eval_batches(load, 16, 16, collate))
    assert load.done[:16] == ["read"] * 16


def test_data_without_a_readable_sample_are_refused() -> None:
    for num_workers in (0, 2):
        with pytest.raises(UserError, match=r"^Sample \d+ and all 32 substitutes .*the last: sample \d+ is bad"):
            next(stream(Load(frozenset(range(50))), num_workers=num_workers).steps(0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_user_errors_reach_the_user_as_they_are(num_workers: int) -> None:
    with pytest.raises(UserError) as caught:
        take(stream(Load(wrong=frozenset({7})), num_workers=num_workers), 10)
    assert str(caught.value) == "sample 7 trains nothing"


@pytest.mark.slow  # torch takes five seconds to end workers after an unexpected exception
def test_programming_errors_in_workers_keep_their_traceback() -> None:
    def load(index: int, epoch: int) -> int:
        return 1 // 0

    with pytest.raises(ZeroDivisionError, match="return 1 // 0"):
        next(stream(load, num_workers=1).steps(0))


def test_workers_leave_interrupts_to_the_trainer() -> None:
    def load(index: int, epoch: int) -> tuple[int, int]:
        return int(signal.getsignal(signal.SIGINT) == signal.SIG_IGN), epoch

    handler = signal.getsignal(signal.SIGINT)
    (batch,) = eval_batches(load, 2, 2, collate, num_workers=1)
    assert keys(batch) == [(1, 0), (1, 0)]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (1, 2), (3, 0), (7, 1)])
def test_evaluation_sees_every_sample_once_and_in_order(world_size: int, num_workers: int) -> None:
    parts = [
        [
            index
            for batch in eval_batches(Load(), 20, 4, collate, num_workers=num_workers, rank=rank, world_size=world_size)
            for index, _ in keys(batch)
        ]
        for rank in range(world_size)
    ]
    assert all(part == list(range(rank, 20, world_size)) for rank, part in enumerate(parts))
    assert sorted(flat(parts)) == list(range(20))


@pytest.mark.parametrize("bad", [{0}, {19}, {4, 5, 6, 7}, {0, 1, 2, 3}, {15, 16, 17, 18, 19}, set(range(1, 20))])
def test_evaluation_leaves_bad_samples_out_and_counts_all_of_them(bad: set[int]) -> None:
    batches = list(eval_batches(Load(frozenset(bad)), 20, 4, collate))
    assert [index for batch in batches for index, _ in keys(batch)] == [i for i in range(20) if i not in bad]
    assert sum(batch["num_bad"] for batch in batches) == len(bad)


def test_evaluation_without_a_readable_sample_is_refused() -> None:
    with pytest.raises(UserError, match="None of the 20 samples"):
        list(eval_batches(Load(frozenset(range(20))), 20, 4, collate))
    assert list(eval_batches(Load(), 2, 4, collate, rank=2, world_size=3)) == []
