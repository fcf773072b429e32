"""The loader of an elastic model: which sample is encoded for which number of visual tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from transformers import AutoTokenizer

from vlmkit.data.conversations.conversation_loader import ConversationLoader, TokenCounts
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.conversations.packing import PackingCollate
from vlmkit.data.loader import Stream
from vlmkit.data.samples import ConversationSample, Turn
from vlmkit.data.tokenizer import DIRECTORY

TOKENIZER = AutoTokenizer.from_pretrained(DIRECTORY)


class Numbered:
    """Two images and a question that names the sample."""

    fingerprint = "numbered"

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> ConversationSample:
        image = np.full((8, 8, 3), index, np.uint8)
        return ConversationSample(str(index), (image, image), (Turn("which", str(index)),))


def loader(counts: TokenCounts) -> ConversationLoader:
    return ConversationLoader(Numbered(), ConversationEncoder(TOKENIZER, 16, 200), 8, token_counts=counts)


def drawn(samples: int = 48, **stream: int) -> list[tuple[int, int]]:
    """(sample, tokens of its images) in the order of training, of all ranks."""
    found: list[tuple[int, int]] = []
    ranks = [
        Stream(
            loader(TokenCounts((1, 4, 16), seed=3)),
            Numbered(),
            PackingCollate(200, 0),
            global_batch_size=4,
            micro_batch_size=1,
            rank=rank,
            world_size=stream.get("world_size", 1),
            num_workers=stream.get("num_workers", 0),
        ).steps(0)
        for rank in range(stream.get("world_size", 1))
    ]
    while len(found) < samples:
        for batch in [batch for steps in ranks for batch in next(steps)]:
            (count, same) = batch["token_counts"]
            assert count == same and int((batch["input_ids"] == TOKENIZER.get_vocab()["<image>"]).sum()) == 2 * count
            found.append((int(batch["pixel_values"][0, 0, 0, 0]), count))
    return found[:samples]


def test_counts_are_drawn_evenly_and_anew_in_each_epoch() -> None:
    counts = TokenCounts((1, 4, 16), seed=1)
    shares = Counter(counts.of(index, epoch) for index in range(1000) for epoch in range(3))
    assert set(shares) == {(1,), (4,), (16,)} and all(
        share == pytest.approx(1000, rel=0.1) for share in shares.values()
    )
    assert len({counts.of(7, epoch) for epoch in range(20)}) == 3
    assert [TokenCounts((1, 4), seed=2).of(i, 0) for i in range(50)] != [
        TokenCounts((1, 4)).of(i, 0) for i in range(50)
    ]


def test_counts_do_not_depend_on_ranks_or_workers() -> None:
    alone = drawn()
    assert len({count for _, count in alone}) == 3
    assert sorted(drawn(world_size=2)) == sorted(alone)
    assert drawn(num_workers=2) == alone


def test_every_count_at_once_gives_a_sequence_for_each() -> None:
    item = loader(TokenCounts((1, 4, 16), "all"))(5, 0)
    assert [sequence.num_visual_tokens for sequence in item.sequences] == [1, 4, 16]
    batch = PackingCollate(200, 0)([item])
    assert sorted(batch["token_counts"]) == [1, 1, 4, 4, 16, 16] and len(batch["pixel_values"]) == 2
    assert batch["num_targets"] == 3 * PackingCollate(200, 0)([loader(TokenCounts((4,)))(5, 0)])["num_targets"]
