"""Packing: the same loss and gradients as separate sequences, in few rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from vlmkit.contracts import IGNORE_INDEX, Batch
from vlmkit.data.conversations import Branch, EncodedSequence
from vlmkit.data.packing import ConversationItem, PackingCollate, best_fit

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # large, so that what a token sees shows in its loss
}
CONFIGS = [Qwen2Config(**SHAPE), LlamaConfig(**SHAPE)]
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


def packed_loss(model: PreTrainedModel, batch: Batch, attention: torch.Tensor) -> torch.Tensor:
    logits = model(
        batch["input_ids"], attention_mask=attention, position_ids=batch["position_ids"], use_cache=False
    ).logits
    targets = batch["labels"][:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def separate_loss(model: PreTrainedModel, given: list[EncodedSequence]) -> torch.Tensor:
    """Every branch behind its own copy of the prefix, alone in its row, with no mask and no positions."""
    total = torch.zeros(())
    for one in given:
        for branch in one.branches:
            logits = model(torch.tensor([one.prefix + branch.ids]), use_cache=False).logits[0, :-1]
            labels = torch.tensor([IGNORE_INDEX] * len(one.prefix) + branch.labels)[1:]
            total = total + F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total


def additive(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, torch.finfo(torch.float32).min)


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_packed_rows_equal_separate_sequences(config: PreTrainedConfig, attention: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
    batch = PackingCollate(max_length=32, pad_token_id=0)([ConversationItem(sequences(), None)])
    assert batch["input_ids"].shape[0] > 1, "the test needs several rows"
    packed, separate = packed_loss(model, batch, additive(batch["attention_mask"])), separate_loss(model, sequences())
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(model, packed), gradients(model, separate), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    causal = torch.ones_like(batch["attention_mask"]).tril()
    unmasked = packed_loss(model, batch, additive(causal))
    assert abs(float(unmasked.detach() / separate.detach()) - 1) > 1e-2, "the mask has no effect here"


def test_the_batch_says_how_many_targets_it_has_and_pads_to_its_longest_row() -> None:
    batch = PackingCollate(max_length=200, pad_token_id=0)([ConversationItem(sequences(), None)])
    total = sum(len(one) for one in sequences())
    assert batch["input_ids"].shape == (1, total) and batch["attention_mask"].shape == (1, 1, total, total)
    assert batch["num_targets"] == int((batch["labels"] != IGNORE_INDEX).sum()) > 0
    assert batch["attention_mask"].any(-1).all(), "a query without keys gives NaN"


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
