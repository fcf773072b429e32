"""Mixtures: shares, the parts' own orders, any position looked up, and what a mixture passes on to its parts."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from vlmkit.contracts import Batch
from vlmkit.data.loader import Stream
from vlmkit.data.order import EpochOrder, order_of, stable_hash
from vlmkit.data.samples import BadSample
from vlmkit.data.sources.mixture import BLOCK, Mixture, apportion
from vlmkit.data.sources.opener import open_captions, open_conversations
from vlmkit.errors import UserError


class Numbers:
    """The numbers from ``first``, as samples."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count
        self.fingerprint = f"{first} {count}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return self.first + index


PARTS = [Numbers(0, 100), Numbers(1000, 7), Numbers(2000, 5000)]
WEIGHTS = [0.5, 0.3, 0.2]


def mixture(weights: Any = WEIGHTS) -> Mixture[int]:
    return Mixture(PARTS, weights)


def part_of(index: int) -> int:
    return 0 if index < 100 else 1 if index < 107 else 2


def test_indices_run_through_the_parts() -> None:
    mixed = mixture()
    assert len(mixed) == 5107
    assert [mixed[index] for index in (0, 99, 100, 106, 107, 5106)] == [0, 99, 1000, 1006, 2000, 6999]
    for index in (-1, 5107):
        with pytest.raises(IndexError):
            mixed[index]


def test_draws_are_in_proportion_to_the_weights() -> None:
    keys = list(order_of(mixture(), 1).slice(0, 3 * BLOCK))
    counts = Counter(part_of(index) for index, _ in keys)
    for part, weight in enumerate(WEIGHTS):
        assert counts[part] == pytest.approx(weight * 3 * BLOCK, abs=3)
    early = Counter(part_of(index) for index, _ in keys[:2000])
    for part, weight in enumerate(WEIGHTS):
        assert early[part] == pytest.approx(weight * 2000, abs=4 * np.sqrt(2000 * weight * (1 - weight)))


def test_weights_need_not_add_up_to_one() -> None:
    scaled = mixture([5, 3, 2])
    assert list(order_of(scaled, 1).slice(0, 100)) == list(order_of(mixture(), 1).slice(0, 100))
    assert scaled.fingerprint == mixture().fingerprint


def test_each_part_comes_in_its_own_order_pass_after_pass() -> None:
    keys = list(order_of(mixture(), 1).slice(0, 3000))
    starts = (0, 100, 107)
    for part, numbers in enumerate(PARTS):
        drawn = [(index - starts[part], epoch) for index, epoch in keys if part_of(index) == part]
        own = EpochOrder(len(numbers), stable_hash(1, part))
        assert drawn == list(own.slice(0, len(drawn)))
    assert max(epoch for index, epoch in keys if part_of(index) == 1) > 100


@pytest.mark.parametrize("start", [0, 1, 777, BLOCK - 5, BLOCK, 2 * BLOCK + 12345])
def test_any_position_can_be_looked_up(start: int) -> None:
    order = order_of(mixture(), 1)
    straight = list(order.slice(start - start % 1000, start + 50))[start % 1000 :]
    assert list(order_of(pickle.loads(pickle.dumps(mixture())), 1).slice(start, start + 50)) == straight
    assert list(order_of(mixture(), 2).slice(start, start + 50)) != straight


def test_large_parts_keep_their_permutation_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    permutation = np.random.Generator.permutation

    class Counting(np.random.Generator):
        def permutation(self, x: Any, axis: int = 0) -> Any:
            made.append(x)
            return permutation(self, x, axis)

    monkeypatch.setattr(np.random, "Generator", Counting)
    order = order_of(Mixture([Numbers(0, 10**5 + i) for i in range(4)], [1] * 4), 0)
    for step in range(20):
        list(order.slice(step * 32, step * 32 + 32))
    assert len(made) == 4


def test_substitutes_come_from_the_same_part() -> None:
    order = order_of(mixture(), 1)
    for index in (5, 103, 3000):
        drawn = {order.substitute((index, 0), attempt) for attempt in range(10)}
        assert {part_of(other) for other in drawn} == {part_of(index)}
        assert len(drawn) > 3


def test_a_stream_over_a_mixture_is_the_same_for_all_ranks_and_resumes() -> None:
    def load(index: int, epoch: int) -> tuple[int, int]:
        if index == 103:
            raise BadSample("bad")
        return index, epoch

    def collate(items: Any) -> Batch:
        return {"keys": torch.tensor(items)}

    def steps(world_size: int, start: int, count: int) -> list[list[Any]]:
        streams = [
            Stream(load, mixture(), collate, global_batch_size=12, rank=rank, world_size=world_size).steps(12 * start)
            for rank in range(world_size)
        ]
        return [
            [key for group in zip(*(next(s)[0]["keys"].tolist() for s in streams), strict=True) for key in group]
            for _ in range(count)
        ]

    straight = steps(1, 0, 30)
    assert all(key[0] != 103 for step in straight for key in step)
    for world_size in (2, 4):
        assert steps(world_size, 17, 5) == straight[17:22]


def test_mixtures_of_sources_by_specification() -> None:
    specs = {"miniworld:train?scenes=30": 3.0, "miniworld:val?scenes=10": 1}
    captions = open_captions(specs)
    parts = [open_captions(spec) for spec in specs]
    assert len(captions) == 40
    assert captions[33].captions == parts[1][3].captions == captions.captions_only(33)
    counts = Counter(index < 30 for index, _ in order_of(captions, 0).slice(0, BLOCK))
    assert counts[True] == 3 * counts[False]
    conversations = open_conversations(specs)
    assert conversations[33].id == "miniworld-val-3"
    other = open_captions({"miniworld:train?scenes=30": 1.0, "miniworld:val?scenes=10": 1})
    assert captions.fingerprint != other.fingerprint
    copy = pickle.loads(pickle.dumps(captions))
    assert copy.captions_only(33) == captions.captions_only(33)


def test_mixtures_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="positive weight"):
        open_captions({})
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="positive weight"):
            open_captions({"miniworld:val": weight})
    with pytest.raises(UserError, match="no kind of source"):
        open_captions({"miniworld:val": 1, "llava:x": 1})


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [0.9, 0.1], [1e-9, 1, 1], list(range(1, 40)), [1e300, 1]])
def test_shares_are_whole_and_complete(weights: list[float]) -> None:
    draws = apportion(weights, BLOCK)
    assert draws.sum() == BLOCK
    assert draws.min() >= 1
    exact = np.array(weights) / sum(weights) * BLOCK
    assert np.abs(draws - exact).max() <= len(weights)
