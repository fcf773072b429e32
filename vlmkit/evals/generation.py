"""Greedy answers to many questions: the tower once an image, prompts left-padded in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlmkit.contracts import IGNORE_INDEX
from vlmkit.data.conversations import ConversationEncoder, EncodedPrompt
from vlmkit.data.samples import ConversationSample, Turn
from vlmkit.models.vlm import VLM


@dataclass(frozen=True)
class ImagePrompts:
    """Questions about the same images: ``pixel_values`` uint8 [K, 3, S, S], and any number of prompts."""

    id: str
    pixel_values: torch.Tensor
    prompts: Sequence[str]


@dataclass(frozen=True)
class _Request:
    """One encoded prompt; its images are rows ``first_image`` and following of the window's features."""

    prompt: EncodedPrompt
    first_image: int

    @property
    def images(self) -> list[int]:
        return [self.first_image + image for image in self.prompt.images]


class GreedyAnswerer:
    """Answers questions with a VLM on the device it is on, at most ``batch_size`` images or prompts at a time.

    In float32 an answer depends on its own prompt and images only, whatever it is batched with (rounding may tip
    exact ties of logits). Puts the model into evaluation mode.
    """

    def __init__(self, vlm: VLM, encoder: ConversationEncoder, *, batch_size: int, max_new_tokens: int) -> None:
        self.vlm = vlm.eval()
        self.encoder = encoder
        self.batch_size = batch_size
        tokenizer = encoder.tokenizer
        self._pad = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self._generation = {
            "max_new_tokens": max_new_tokens,
            "eos_token_id": _stop_tokens(encoder),
            "pad_token_id": self._pad,
        }

    @torch.inference_mode()
    def answer(self, window: Sequence[ImagePrompts]) -> list[list[str]]:
        """The decoded answers, stripped and without special tokens, one list an item, in the order given."""
        features = self._features(torch.cat([item.pixel_values for item in window]))
        requests: list[_Request] = []
        first_image = 0
        for item in window:
            num_images = len(item.pixel_values)
            requests += [
                _Request(self.encoder.prompt(prompt, num_images, item.id), first_image) for prompt in item.prompts
            ]
            first_image += num_images
        flat = iter(self._answers(requests, features))
        return [[next(flat) for _ in item.prompts] for item in window]

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        if not len(pixel_values):
            return None
        batches = pixel_values.split(self.batch_size)
        return torch.cat([self.vlm.cacheable_features(batch.to(self.vlm.device)) for batch in batches])

    def _answers(self, requests: Sequence[_Request], features: torch.Tensor | None) -> list[str]:
        """Answers in the order of the requests, generated in the order of their lengths: padding costs time."""
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt.ids))
        answers = [""] * len(requests)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            generated = self._generate([requests[index] for index in chosen], features)
            texts = self.encoder.tokenizer.batch_decode(generated, skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text.strip()
        return answers

    def _generate(self, requests: Sequence[_Request], features: torch.Tensor | None) -> torch.Tensor:
        device = self.vlm.device
        ids, mask = _padded([request.prompt.ids for request in requests], self._pad, "left")
        inputs: dict[str, torch.Tensor | None] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        shown = [image for request in requests for image in request.images]
        if shown:
            inputs |= {"image_features": features, "image_index": torch.tensor(shown, device=device)}
        if shown and self.encoder.conditioned:
            # One row a block of image places: a question about two images conditions both.
            queries = [request.prompt.query for request in requests for _ in request.images]
            query_ids, query_mask = _padded(queries, self._pad, "right")
            inputs |= {"query_input_ids": query_ids.to(device), "query_attention_mask": query_mask.to(device)}
        return self.vlm.generate(**inputs, **self._generation)


def _padded(rows: Sequence[list[int]], pad: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] padded on one side to the longest row, and the mask that is 1 at real tokens."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return ids, mask


def _stop_tokens(encoder: ConversationEncoder) -> list[int]:
    """The tokenizer's end token, and the special token that ends an answer in the chat template."""
    (sequence,) = encoder.encode(ConversationSample("stop", (), (Turn("question", "answer"),)))
    last = [label for label in sequence.branches[0].labels if label != IGNORE_INDEX][-1]
    stops = {int(encoder.tokenizer.eos_token_id)}
    return sorted(stops | {last} if last in encoder.tokenizer.all_special_ids else stops)
