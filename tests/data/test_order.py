"""The orders of training: each sample once an epoch, any position looked up, memory bounded by the window."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest

from vlmkit.data import order
from vlmkit.data.order import EpochOrder, SampleOrder, WindowOrder, order_of, shards_per_window, shuffled, stable_hash

SIZES = np.array([7, 0, 3, 12, 5, 1, 9, 4, 0, 6])
TOTAL = int(SIZES.sum())
SHARD_OF = np.repeat(np.arange(len(SIZES)), SIZES)


def window_order(seed: int = 3, window_rows: int = 15, **options: object) -> WindowOrder:
    return WindowOrder(SIZES, seed, window_rows, **options)  # type: ignore[arg-type]


ORDERS: dict[str, SampleOrder] = {"epoch": EpochOrder(TOTAL, 3), "window": window_order()}


@pytest.mark.parametrize("name", ORDERS)
def test_each_epoch_is_a_new_permutation_of_all_samples(name: str) -> None:
    keys = list(ORDERS[name].slice(0, 5 * TOTAL))
    epochs = [[index for index, number in keys if number == epoch] for epoch in range(5)]
    assert all(sorted(epoch) == list(range(TOTAL)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert [epoch for _, epoch in keys] == sorted(epoch for _, epoch in keys)


@pytest.mark.parametrize("name", ORDERS)
def test_any_position_can_be_looked_up(name: str) -> None:
    straight = list(ORDERS[name].slice(0, 3 * TOTAL))
    for start in range(0, 2 * TOTAL, 5):
        for length in (0, 1, 11, TOTAL):
            fresh = pickle.loads(pickle.dumps(ORDERS[name]))
            assert list(fresh.slice(start, start + length)) == straight[start : start + length]


def test_the_order_depends_on_the_seed_alone() -> None:
    first = list(window_order().slice(0, 2 * TOTAL))
    assert list(window_order().slice(0, 2 * TOTAL)) == first
    assert list(window_order(seed=4).slice(0, 2 * TOTAL)) != first
    assert len(list(window_order(seed=-1).slice(0, TOTAL))) == TOTAL


def test_the_whole_permutation_is_what_it_always_was() -> None:
    """Runs that began under an earlier version go on in the same order."""
    key = np.array([3, 1], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key)).permutation(TOTAL)
    assert [index for index, _ in EpochOrder(TOTAL, 3).slice(TOTAL, 2 * TOTAL)] == expected.tolist()


def test_a_window_has_as_many_shards_as_hold_its_rows() -> None:
    assert shards_per_window(SIZES, 15) == 4  # 4.7 rows a shard
    assert shards_per_window(SIZES, 1) == 1
    assert shards_per_window(SIZES, 10**9) == len(SIZES)


def test_windows_are_whole_shards_and_announced_with_the_next_one() -> None:
    heard: list[list[int]] = []
    announcing = window_order(on_window=lambda shards: heard.append(list(shards)))
    visited = [index for index, _ in announcing.slice(0, 2 * TOTAL)]
    assert len(heard) == 6  # three windows an epoch: 4 + 4 + 2 shards
    for epoch in range(2):
        announced = heard[3 * epoch : 3 * epoch + 3]
        assert sorted(announced[0][:4] + announced[1][:4] + announced[2][:2]) == list(range(10))
        assert announced[0][4:] == announced[1][:4]
        assert announced[1][4:] == announced[2][:2]
    assert heard[2][2:] == heard[3][:4]
    start = 0
    for window in (heard[0][:4], heard[1][:4], heard[2][:2]):
        rows = SIZES[window].sum()
        assert set(SHARD_OF[visited[start : start + rows]]) == {shard for shard in window if SIZES[shard]}
        assert visited[start : start + rows] != sorted(visited[start : start + rows])
        start += rows


def test_a_resumed_order_announces_the_window_it_is_in() -> None:
    heard: list[list[int]] = []
    next(window_order(on_window=lambda shards: heard.append(list(shards))).slice(TOTAL + 20, TOTAL + 21))
    straight: list[list[int]] = []
    list(window_order(on_window=lambda shards: straight.append(list(shards))).slice(0, 2 * TOTAL))
    assert heard[0] in straight[3:]


def test_substitutes_come_from_the_same_window() -> None:
    announced: list[list[int]] = []
    source = window_order(on_window=lambda shards: announced.append(list(shards)))
    for key in source.slice(TOTAL, 2 * TOTAL):
        window = announced[-1][: 4 if len(announced) < 3 else 2]
        drawn = {source.substitute(key, attempt) for attempt in range(20)}
        assert {int(SHARD_OF[index]) for index in drawn} <= set(window)
        assert len(drawn) > 1 or SIZES[window].sum() < 3
        fresh = pickle.loads(pickle.dumps(window_order()))
        assert [fresh.substitute(key, attempt) for attempt in range(3)] == [
            source.substitute(key, attempt) for attempt in range(3)
        ]


def test_substitutes_of_a_whole_permutation_are_what_they_always_were() -> None:
    assert EpochOrder(TOTAL, 3).substitute((8, 1), 2) == stable_hash(3, 8, 2) % TOTAL


def test_small_sources_are_permuted_as_a_whole_and_large_ones_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(shuffled(1000, 0), EpochOrder)
    monkeypatch.setattr(order, "MAX_PERMUTATION", 999)
    monkeypatch.setattr(order, "WINDOW_ROWS", 100)
    monkeypatch.setattr(order, "_BLOCK_ROWS", 16)
    blocks = shuffled(1000, 0)
    assert isinstance(blocks, WindowOrder)
    assert sorted(index for index, _ in blocks.slice(0, 1000)) == list(range(1000))
    assert sorted(index for index, _ in shuffled(1000, 0, np.full(10, 100)).slice(0, 1000)) == list(range(1000))


def test_a_source_decides_on_its_order() -> None:
    class Own(list[int]):
        def order(self, seed: int) -> EpochOrder:
            return EpochOrder(3, seed + 1)

    assert list(order_of(Own([1, 2, 3]), 0).slice(0, 3)) == list(EpochOrder(3, 1).slice(0, 3))
    assert list(order_of([1, 2, 3], 0).slice(0, 3)) == list(order_of(3, 0).slice(0, 3))


def test_billions_of_rows_take_the_memory_of_a_window() -> None:
    sizes = np.full(200_000, 10_000)  # two billion rows
    tracemalloc.start()
    try:
        billions = WindowOrder(sizes, 0, 2**16)
        keys = list(billions.slice(1_234_567_890, 1_234_567_890 + 100))
        list(billions.slice(3 * 10**9, 3 * 10**9 + 100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len({index for index, _ in keys}) == 100
    assert peak < 40e6  # a window of 70,000 indices and some numbers for each shard; a permutation would take 16 GB
