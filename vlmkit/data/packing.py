"""Packing: sequences of any length side by side in few, full rows, none of which sees another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vlmkit.contracts import IGNORE_INDEX, Batch
from vlmkit.data.conversations import EncodedSequence


@dataclass(frozen=True)
class ConversationItem:
    """A sample ready to be packed: its sequences, and its images as pixels uint8 [I, 3, S, S] or features [I, P, C]."""

    sequences: list[EncodedSequence]
    images: torch.Tensor | None


@dataclass(frozen=True)
class PackingCollate:
    """Items to one packed batch.

    The batch holds ``input_ids``, ``labels``, ``position_ids`` [R, T] and a boolean block mask ``attention_mask``
    [R, 1, T, T] (True: may attend); T is the longest row, at most ``max_length``. In a row every sequence starts at
    position 0 and sees itself only; a branch sees its prefix and itself, and its positions continue the prefix.
    Images come as ``pixel_values`` or ``image_features``, each once; ``image_index`` [M] names the image of every block
    of image places in row-major order, ``token_counts`` (M integers) the number of its places, and ``query_input_ids``,
    ``query_attention_mask`` [M, Q] its question, where the sequences carry one. ``num_targets`` counts the labelled
    positions.
    """

    max_length: int
    pad_token_id: int

    def __call__(self, items: Sequence[ConversationItem]) -> Batch:
        first_image, images = 0, []
        entries: list[tuple[EncodedSequence, int]] = []
        for item in items:
            entries += [(sequence, first_image) for sequence in item.sequences]
            if item.images is not None:
                images.append(item.images)
                first_image += len(item.images)
        rows = best_fit([len(sequence) for sequence, _ in entries], self.max_length)
        batch = _tensors([[entries[i][0] for i in row] for row in rows], self.pad_token_id)
        if images:
            stacked = torch.cat(images)
            batch["pixel_values" if stacked.dtype == torch.uint8 else "image_features"] = stacked
            in_order = [entries[i] for row in rows for i in row]
            batch["image_index"] = torch.tensor([first + i for sequence, first in in_order for i in sequence.images])
            batch["token_counts"] = [seq.num_visual_tokens for seq, _ in in_order for _ in seq.images]
            queries = [sequence.query for sequence, _ in in_order for _ in sequence.images]
            if any(queries):
                batch["query_input_ids"], batch["query_attention_mask"] = _pad(queries, self.pad_token_id)
        return batch


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of sequences sorted into rows of at most ``capacity`` tokens: longest first, each into the fullest row
    that has room for it (best-fit decreasing)."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        assert 0 < lengths[index] <= capacity, f"a sequence of {lengths[index]} tokens in rows of {capacity}"
        at = bisect_left(room, (lengths[index], -1))
        free, row = room.pop(at) if at < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return rows


def _tensors(rows: list[list[EncodedSequence]], pad_token_id: int) -> Batch:
    shape = len(rows), max(sum(map(len, row)) for row in rows)
    ids, labels = np.full(shape, pad_token_id), np.full(shape, IGNORE_INDEX)
    positions, sequence_of, branch_of = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, int)
    for r, row in enumerate(rows):
        start = 0
        for number, sequence in enumerate(row, 1):
            length, prefix = len(sequence), len(sequence.prefix)
            ids[r, start : start + length] = _chain([sequence.prefix, *(branch.ids for branch in sequence.branches)])
            sequence_of[r, start : start + length] = number
            positions[r, start : start + prefix] = range(prefix)
            at = start + prefix
            for k, branch in enumerate(sequence.branches, 1):
                # The token before a branch in its row is not the token before it in its text.
                assert branch.labels[0] == IGNORE_INDEX, "the first token of a branch cannot be predicted"
                end = at + len(branch.ids)
                labels[r, at:end] = branch.labels
                positions[r, at:end] = range(prefix, prefix + len(branch.ids))
                branch_of[r, at:end] = k
                at = end
            start += length
    return {
        "input_ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": _block_mask(torch.from_numpy(sequence_of), torch.from_numpy(branch_of)),
        "num_targets": int((labels != IGNORE_INDEX).sum()),
    }


def _block_mask(sequence_of: torch.Tensor, branch_of: torch.Tensor) -> torch.Tensor:
    """[R, 1, T, T], True where a query (row) may see a key (column): same sequence, its prefix or same branch, causal.

    Padding counts as a sequence of its own, so that no query is left without a key (which would give NaN).
    """
    same_sequence = sequence_of[:, :, None] == sequence_of[:, None, :]
    same_branch = (branch_of[:, None, :] == 0) | (branch_of[:, :, None] == branch_of[:, None, :])
    return (same_sequence & same_branch).tril()[:, None]


def _pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, T] and their mask (1: a token)."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _chain(parts: Iterable[Sequence[int]]) -> list[int]:
    return [value for part in parts for value in part]
