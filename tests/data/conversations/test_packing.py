"""Packing: what a batch holds, in few rows, and in parts of so many tokens (losses: models/test_packed_rows.py)."""

from __future__ import annotations

import pytest
import torch

from vlmkit.contracts import IGNORE_INDEX, Batch
from vlmkit.data.conversations.conversations import Branch, EncodedSequence
from vlmkit.data.conversations.packing import ConversationItem, PackingCollate, best_fit

IMAGE = 5


def sequence(generator: torch.Generator, prefix: int, branches: list[int], images: int = 0) -> EncodedSequence:
    def tokens(count: int) -> list[int]:
        return torch.randint(6, 64, (count,), generator=generator).tolist()

    made = []
    for length in branches:
        ids = tokens(length)
        made.append(Branch(ids, [IGNORE_INDEX] * (length // 2 + 1) + ids[length // 2 + 1 :]))
    return EncodedSequence(tokens(prefix)[images:] + [IMAGE] * images, made, list(range(images)), [], 1)


def sequences() -> list[EncodedSequence]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, [5, 7, 4]), (0, [9]), (3, [6]), (0, [12, 4]), (8, [5, 5, 5, 5]), (0, [3])]
    return [sequence(generator, prefix, branches) for prefix, branches in shapes]


def test_the_batch_says_how_many_targets_it_has_and_pads_to_its_longest_row() -> None:
    batch = PackingCollate(max_length=200, pad_token_id=0)([ConversationItem(sequences(), None)])
    total = sum(len(one) for one in sequences())
    for name in ("input_ids", "labels", "position_ids", "sequence_ids", "branch_ids"):
        assert batch[name].shape == (1, total), name
    assert batch["num_targets"] == int((batch["labels"] != IGNORE_INDEX).sum()) > 0


def test_rows_say_which_sequence_and_branch_a_token_belongs_to() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [sequence(generator, 2, [3, 2]), sequence(generator, 0, [4]), sequence(generator, 1, [2])]
    batch = PackingCollate(max_length=11, pad_token_id=0)([ConversationItem(given, None)])
    assert batch["sequence_ids"].tolist() == [[1] * 7 + [2] * 4, [1] * 3 + [0] * 8]
    assert batch["branch_ids"].tolist() == [[0, 0, 1, 1, 1, 2, 2, 1, 1, 1, 1], [0, 1, 1] + [0] * 8]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 3], [0, 1, 2] + [0] * 8]


def test_micro_batches_hold_at_most_so_many_tokens_and_together_what_one_batch_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, [6], 1), (0, [9], 0), (0, [20], 0), (5, [5, 4], 2), (2, [7], 1), (0, [11], 0), (3, [12], 1)]
    items = []
    for number, (prefix, branches, images) in enumerate(shapes):
        pixels = torch.full((images, 3, 2, 2), number, dtype=torch.uint8) if images else None
        items.append(ConversationItem([sequence(generator, prefix, branches, images)], pixels))
    collate = PackingCollate(max_length=24, pad_token_id=0)
    whole, parts = collate(items), collate.micro_batches(items, max_tokens=40)
    assert len(parts) > 1 and all(part["input_ids"].numel() <= 40 for part in parts)
    assert sum(part["num_targets"] for part in parts) == whole["num_targets"]

    def rows(batches: list[Batch]) -> list[tuple[list[int], list[int]]]:
        """Each row's tokens, and the images it shows, by the constant that each of them is."""
        found = []
        for batch in batches:
            shown = batch["pixel_values"][batch["image_index"]][:, 0, 0, 0].tolist() if "image_index" in batch else []
            for ids, number in zip(batch["input_ids"], batch["sequence_ids"], strict=True):
                count = int((ids == IMAGE).sum())
                found.append((ids[number > 0].tolist(), shown[:count]))
                shown = shown[count:]
            assert not shown
        return sorted(found)

    assert rows(parts) == rows([whole])


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_places_every_sequence_once_and_wastes_little(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 65, (120,), generator=generator).tolist()
    rows = best_fit(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(120))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 64) + 1  # the guarantee of best-fit decreasing


def test_image_index_follows_the_places_through_packing() -> None:
    """Every item's image is a constant, and so is every place: the two must meet."""
    generator = torch.Generator().manual_seed(0)
    items, question = [], {}
    for number, length in enumerate([4, 9, 6, 12, 3]):
        one = sequence(generator, 5, [length], images=1)
        query = [10 + number] * (1 + number % 3)
        marked = EncodedSequence(one.prefix, one.branches, [0], query, 1)
        question[number] = query
        one.prefix[0] = 40 + number
        items.append(ConversationItem([marked, marked], torch.full((1, 3, 2, 2), number, dtype=torch.uint8)))
    batch = PackingCollate(max_length=24, pad_token_id=0)(items)
    assert batch["pixel_values"].shape[0] == 5, "an image that is used twice is there once"
    ids = batch["input_ids"]
    starts = [row[i] - 40 for row in ids.tolist() for i in range(len(row) - 4) if row[i + 4] == IMAGE and row[i] >= 40]
    shown = batch["pixel_values"][batch["image_index"]][:, 0, 0, 0].tolist()
    assert shown == starts and len(shown) == 10
    for number, row, mask in zip(shown, batch["query_input_ids"], batch["query_attention_mask"], strict=True):
        assert row[mask.bool()].tolist() == question[number]


def test_features_travel_as_image_features_and_text_alone_without_images() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.zeros(1, 4, 8, dtype=torch.float16)
    batch = PackingCollate(24, 0)([ConversationItem([sequence(generator, 5, [4], images=1)], features)])
    assert batch["image_features"].shape == (1, 4, 8) and "pixel_values" not in batch
    text = PackingCollate(24, 0)([ConversationItem([sequence(generator, 0, [4])], None)])
    assert not {"pixel_values", "image_features", "image_index", "query_input_ids"} & text.keys()
