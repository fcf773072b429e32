"""Shared memory for batches: what arrives is what was placed, and no slot is used again before its batch is gone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from vlmkit.contracts import Batch
from vlmkit.data import batch_slots, loader
from vlmkit.data.batch_slots import BatchSlots, Rows, stack_rows
from vlmkit.data.loader import Stream, eval_batches
from vlmkit.errors import UserError


def load(index: int, epoch: int) -> tuple[int, int]:
    return index, epoch


def collate(items: Any) -> Batch:
    """A batch whose every number says which samples it is of; its size varies."""
    first = items[0][0]
    return {
        "pixels": torch.full((len(items), 3, 20, 20), first % 256, dtype=torch.uint8),
        "rows": stack_rows(
            [torch.full((5, 4, 3), index % 256, dtype=torch.uint8).permute(2, 0, 1) for index, _ in items]
        ),
        "features": stack_rows([torch.arange(3.0).to(torch.bfloat16) + index % 64 for index, _ in items]),
        "ids": torch.tensor(items)[:, :, None].expand(-1, -1, 1 + first % 7),  # not contiguous, of varying width
        "scale": torch.tensor(float(first)),
        "none": torch.zeros(0, 4),
        "name": f"batch of {first}",
    }


def intact(batch: Batch) -> bool:
    first = int(batch["ids"][0, 0, 0])
    indices = batch["ids"][:, 0, :1]
    return (
        bool((batch["pixels"] == first % 256).all())
        and torch.equal(batch["rows"], (indices % 256).to(torch.uint8)[..., None, None].expand(-1, 3, 5, 4))
        and torch.equal(batch["features"], (torch.arange(3) + indices % 64).to(torch.bfloat16))
        and batch["ids"].shape[2] == 1 + first % 7
        and float(batch["scale"]) == first
        and batch["none"].shape == (0, 4)
        and batch["name"] == f"batch of {first}"
        and batch.keys() == {"pixels", "rows", "features", "ids", "scale", "none", "name", "num_bad"}
    )


def stream(num_workers: int, num_samples: int = 1000) -> Any:
    return Stream(load, num_samples, collate, global_batch_size=4, seed=1, num_workers=num_workers).batches(0)


@pytest.mark.parametrize("held", [0, 1, 5, 100])
def test_batches_stay_what_they_are_while_they_are_held(held: int) -> None:
    """However many are held, also more than there are slots."""
    kept: list[Batch] = []
    for batch, expected in itertools.islice(zip(stream(2), stream(0), strict=False), 150):
        assert torch.equal(batch["ids"], expected["ids"])
        kept = [*kept, batch][-held:] if held else []
        assert intact(batch) and all(map(intact, kept))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
def test_beside_a_gpu_batches_come_pinned_and_stay_what_they_are() -> None:
    kept: list[Batch] = []
    for batch in itertools.islice(stream(2), 100):
        kept = [*kept, batch][-20:]
        assert batch["pixels"].is_pinned() and all(map(intact, kept))


class Watched(BatchSlots):
    """Keeps which slots batches came in."""

    latest: Watched

    def __init__(self, num_workers: int, pin: bool = False) -> None:
        super().__init__(num_workers, pin)
        self.seen: list[Any] = []
        Watched.latest = self

    def received(self, batch: Batch) -> Batch:
        self.seen.append(batch.get("_slot"))
        return super().received(batch)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "BatchSlots", Watched)


def test_few_slots_are_used_again_and_again(watched: None) -> None:
    for batch in itertools.islice(stream(2), 100):
        assert intact(batch)
        del batch
    seen = Watched.latest.seen
    assert len(seen) == 100 and None not in seen
    assert {worker for worker, _ in seen} == {0, 1}
    assert len(set(seen)) <= 2 * 8  # four under way in each process, and those it has not heard of as gone


def test_any_part_of_a_batch_keeps_its_slot(watched: None) -> None:
    batches = stream(1)
    batch = next(batches)
    slot = Watched.latest.seen[0]
    part, array = batch["pixels"][1:2], batch["ids"].numpy()
    expected = part.clone(), array.copy()
    del batch
    for other in itertools.islice(batches, 60):
        assert intact(other)
        del other
    assert slot not in Watched.latest.seen[1:]
    assert torch.equal(part, expected[0]) and (array == expected[1]).all()
    del part
    for other in itertools.islice(batches, 60):
        del other
    assert slot not in Watched.latest.seen[1:]
    del array
    for other in itertools.islice(batches, 60):
        del other
    assert slot in Watched.latest.seen[1:]


def test_without_a_free_slot_batches_take_the_ordinary_way(watched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_slots, "SLOTS", 2)
    held = list(itertools.islice(stream(1), 10))
    assert all(map(intact, held))
    assert sorted(slot for slot in Watched.latest.seen if slot) == [(0, 0), (0, 1)]


def test_pinned_copies_free_the_slot_at_once() -> None:
    slots = BatchSlots(1, pin=True)
    placed = slots.place({"x": torch.ones(3)}, 0)
    assert slots._taken.sum() == 1
    copy = placed["x"].clone()
    assert slots.received({**placed, "x": copy}).keys() == {"x"}
    assert slots._taken.sum() == 0


def test_memory_is_sent_once_and_again_when_it_is_made_anew() -> None:
    slots = BatchSlots(1)
    for size, is_sent in ((100, True), (100, False), (90, False), (10_000, True), (100, False)):
        placed = slots.place({"x": torch.arange(size)}, 0)
        assert isinstance(placed["_room"], torch.Tensor) == is_sent
        batch = slots.received(placed)
        assert batch.keys() == {"x"} and torch.equal(batch["x"], torch.arange(size))
        del batch
        assert slots._taken.sum() == 0


@pytest.mark.parametrize("num_channels_last", [0, 1, 2])
def test_channels_stay_last_in_memory_where_they_are_so_in_all_rows(num_channels_last: int) -> None:
    first, last = torch.randint(0, 256, (3, 4, 5)).byte(), torch.randint(0, 256, (4, 5, 3)).byte().permute(2, 0, 1)
    rows = [last] * num_channels_last + [first] * (2 - num_channels_last)
    slots = BatchSlots(1)
    placed = slots.received(slots.place({"x": Rows(rows)}, 0))["x"]
    for stacked in (placed, Rows(rows).stack()):
        assert torch.equal(stacked, torch.stack(rows))
        assert stacked.is_contiguous(memory_format=torch.channels_last) == (num_channels_last == 2)


def test_rows_outside_of_loader_processes_are_stacked_at_once() -> None:
    rows = [torch.rand(2, 3), torch.rand(3, 2).T]
    stacked = stack_rows(rows)
    assert isinstance(stacked, torch.Tensor) and torch.equal(stacked, torch.stack(rows))


def test_a_batch_without_tensors_passes_through() -> None:
    slots = BatchSlots(1)
    assert slots.received(slots.place({"num_bad": 3}, 0)) == {"num_bad": 3}
    assert slots._taken.sum() == 0


def test_evaluation_batches_too() -> None:
    batches = list(eval_batches(load, 50, 4, collate, num_workers=2))
    assert all(map(intact, batches))
    assert [int(i) for batch in batches for i in batch["ids"][:, 0, 0]] == list(range(50))


@pytest.mark.parametrize("where", ["here", "worker"])
def test_full_shared_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    share = torch.Tensor.share_memory_

    def full(tensor: torch.Tensor) -> torch.Tensor:
        if where == "here" or get_worker_info():
            raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")
        return share(tensor)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(UserError, match=r"^Shared memory is full: .* --shm-size\), or set fewer train\.num_workers"):
        next(stream(1))
