"""Packing: sequences of any length side by side in few, full rows, none of which sees another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vlmkit.contracts import IGNORE_INDEX, Batch
from vlmkit.data.conversations.conversations import EncodedSequence


@dataclass(frozen=True)
class ConversationItem:
    """A sample ready to be packed: its sequences, and its images as pixels uint8 [I, 3, S, S] or features [I, P, C]."""

    sequences: list[EncodedSequence]
    images: torch.Tensor | None


_Entry = tuple[EncodedSequence, int]
"""A sequence and the number of its item."""


@dataclass(frozen=True)
class PackingCollate:
    """Items to packed batches.

    A batch holds ``input_ids``, ``labels``, ``position_ids``, ``sequence_ids`` and ``branch_ids`` [R, T]; T is the
    longest row, at most ``max_length``. In a row every sequence starts at position 0 and is to see itself only; a
    branch is to see its prefix and itself, and its positions continue the prefix. ``sequence_ids`` number the sequences
    of a row from 1 on (0: padding), ``branch_ids`` the branches of a sequence (0: its prefix).
    Images come as ``pixel_values`` or ``image_features``, each once; ``image_index`` [M] names the image of every block
    of image places in row-major order, ``token_counts`` (M integers) the number of its places, and ``query_input_ids``,
    ``query_attention_mask`` [M, Q] its question, where the sequences carry one. ``num_targets`` counts the labelled
    positions.
    """

    max_length: int
    pad_token_id: int

    def __call__(self, items: Sequence[ConversationItem]) -> Batch:
        """All items as one batch."""
        return self._batch(items, self._pack(items))

    def micro_batches(self, items: Sequence[ConversationItem], max_tokens: int) -> list[Batch]:
        """The items as batches of at most ``max_tokens`` places, padding included (``max_length`` at least)."""
        rows = sorted(self._pack(items), key=_length, reverse=True)
        batches, start = [], 0
        while start < len(rows):
            stop = start + max_tokens // _length(rows[start])
            batches.append(self._batch(items, rows[start:stop]))
            start = stop
        return batches

    def _pack(self, items: Sequence[ConversationItem]) -> list[list[_Entry]]:
        entries = [(sequence, number) for number, item in enumerate(items) for sequence in item.sequences]
        rows = best_fit([len(sequence) for sequence, _ in entries], self.max_length)
        return [[entries[i] for i in row] for row in rows]

    def _batch(self, items: Sequence[ConversationItem], rows: list[list[_Entry]]) -> Batch:
        batch = _tensors([[sequence for sequence, _ in row] for row in rows], self.pad_token_id)
        in_order = [entry for row in rows for entry in row]
        images: list[torch.Tensor] = []
        first_image: dict[int, int] = {}
        for number in sorted({number for _, number in in_order}):
            pictures = items[number].images
            if pictures is not None:
                first_image[number] = sum(map(len, images))
                images.append(pictures)
        if images:
            stacked = torch.cat(images)
            batch["pixel_values" if stacked.dtype == torch.uint8 else "image_features"] = stacked
            shown = [first_image[number] + image for sequence, number in in_order for image in sequence.images]
            batch["image_index"] = torch.tensor(shown)
            batch["token_counts"] = [seq.num_visual_tokens for seq, _ in in_order for _ in seq.images]
            queries = [sequence.query for sequence, _ in in_order for _ in sequence.images]
            if any(queries):
                batch["query_input_ids"], batch["query_attention_mask"] = _pad(queries, self.pad_token_id)
        return batch


def _length(row: Sequence[_Entry]) -> int:
    return sum(len(sequence) for sequence, _ in row)


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
    positions = np.zeros(shape, int)
    sequence_of, branch_of = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
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
        "sequence_ids": torch.from_numpy(sequence_of),
        "branch_ids": torch.from_numpy(branch_of),
        "num_targets": int((labels != IGNORE_INDEX).sum()),
    }


def _pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, T] and their mask (1: a token)."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def _chain(parts: Iterable[Sequence[int]]) -> list[int]:
    return [value for part in parts for value in part]
