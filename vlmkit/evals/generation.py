"""Greedy answers to many questions: the tower once an image, what all prompts begin with once, and the rest of the
prompts in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from vlmkit.contracts import IGNORE_INDEX
from vlmkit.data.conversations.conversations import ConversationEncoder, EncodedPrompt, stop_tokens
from vlmkit.data.images import PadTransform
from vlmkit.data.samples import Turn
from vlmkit.models.prompt_prefix import PromptPrefix, shared_beginning
from vlmkit.models.vlm import VLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.generation.streamers import BaseStreamer


MAX_NEW_TOKENS = 32
"""Room for an answer; short-answer benchmarks need a few tokens."""


@dataclass(frozen=True)
class ImagePrompts:
    """Questions about the same images: uint8 [3, H, W] each, as the answerer's ``transform`` gave them, and any number
    of prompts, each of which follows the same turns of a dialogue (none: it stands alone)."""

    id: str
    images: Sequence[torch.Tensor]
    prompts: Sequence[str]
    history: Sequence[Turn] = ()


class Answerer(Protocol):
    """A model that answers questions about images, of whatever make."""

    batch_size: int
    """Images, or prompts, that it passes at once."""

    @property
    def transform(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What is made of a decoded image, uint8 [3, H, W], before it is shown; picklable, without the model."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """The fields of a result row that the model and its prompts answer: parameters, visual tokens, compressor."""
        ...

    def answer(self, window: Sequence[ImagePrompts], max_new_tokens: int | None = None) -> list[list[str]]:
        """The answers, one list an item, in the order given; each depends on its own prompt and images only.

        ``max_new_tokens`` is the room for one (None: the answerer's own).
        """
        ...


@dataclass(frozen=True)
class Likelihood:
    """How likely an answer is: the sum of its tokens' log-probabilities (natural logarithm), the one that ends it
    included; whether each of them is the likeliest, so that it would be the greedy answer."""

    log_probability: float
    num_tokens: int
    greedy: bool


@dataclass(frozen=True)
class _Request:
    """One encoded prompt; its images are rows ``first_image`` and following of the window's features.

    ``labels`` are those of an answer that the prompt goes on with, to be scored.
    """

    prompt: EncodedPrompt
    first_image: int
    labels: Sequence[int] = ()

    @property
    def images(self) -> list[int]:
        return [self.first_image + image for image in self.prompt.images]


class GreedyAnswerer:
    """Answers questions with a VLM on the device it is on, at most ``batch_size`` images or prompts at a time.

    Images have the encoder's number of visual tokens. What several prompts of a window begin with, up to the first
    image, is read once and kept for the windows that begin alike. In float32 an answer depends on its own prompt and
    images only, whatever it is batched with (rounding may tip exact ties of logits). Puts the model into evaluation
    mode.
    """

    def __init__(
        self, vlm: VLM, encoder: ConversationEncoder, *, batch_size: int, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> None:
        self.vlm = vlm.eval()
        self.encoder = encoder
        self.batch_size = batch_size
        tokenizer = encoder.tokenizer
        self._pad = int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        self._prefix: tuple[tuple[int, ...], PromptPrefix | None] = ((), None)
        self._generation = {
            "max_new_tokens": max_new_tokens,
            "eos_token_id": stop_tokens(tokenizer),
            "pad_token_id": self._pad,
        }

    @property
    def transform(self) -> PadTransform:
        """Images become squares of the tower's size, padded."""
        return PadTransform(self.vlm.vision_tower.image_size)

    @property
    def facts(self) -> dict[str, Any]:
        vlm = self.vlm
        return {
            **parameter_counts(vlm, vlm.language_model.parameters()),
            "visual_tokens": self.encoder.num_visual_tokens,
            "compressor": vlm.config.compressor,
            "query": vlm.config.query if vlm.compressor.reads_question else None,
        }

    @torch.inference_mode()
    def answer(
        self,
        window: Sequence[ImagePrompts],
        max_new_tokens: int | None = None,
        streamer: BaseStreamer | None = None,
    ) -> list[list[str]]:
        """The decoded answers, stripped and without special tokens, one list an item, in the order given.

        ``max_new_tokens`` is the room for one (None: the answerer's own). ``streamer`` hears the tokens of
        a single prompt as they are generated.
        """
        features = self._features([image for item in window for image in item.images])
        requests: list[_Request] = []
        first_image = 0
        for item in window:
            num_images = len(item.images)
            requests += [
                _Request(self.encoder.prompt(prompt, num_images, item.id, item.history), first_image)
                for prompt in item.prompts
            ]
            first_image += num_images
        given = {"max_new_tokens": max_new_tokens, "streamer": streamer}
        generation = {**self._generation, **{name: value for name, value in given.items() if value is not None}}
        flat = iter(self._answers(requests, features, generation))
        return [[next(flat) for _ in item.prompts] for item in window]

    @torch.inference_mode()
    def likelihoods(self, window: Sequence[ImagePrompts], answers: Sequence[Sequence[str]]) -> list[list[Likelihood]]:
        """How likely the model thinks given answers, one a prompt, worded as answers are in training."""
        features = self._features([image for item in window for image in item.images])
        requests: list[_Request] = []
        first_image = 0
        for item, of_item in zip(window, answers, strict=True):
            for prompt, answer in zip(item.prompts, of_item, strict=True):
                encoded, labels = self.encoder.answered(prompt, answer, len(item.images), item.id, item.history)
                requests.append(_Request(encoded, first_image, labels))
            first_image += len(item.images)
        scored: dict[int, Likelihood] = {}
        for chosen in self._batches(requests):
            scored |= zip(chosen, self._score([requests[index] for index in chosen], features), strict=True)
        flat = iter(scored[index] for index in range(len(requests)))
        return [[next(flat) for _ in item.prompts] for item in window]

    def _features(self, images: Sequence[torch.Tensor]) -> torch.Tensor | None:
        if not images:
            return None
        batches = torch.stack(list(images)).split(self.batch_size)
        return torch.cat([self.vlm.cacheable_features(batch.to(self.vlm.device)) for batch in batches])

    def _answers(
        self, requests: Sequence[_Request], features: torch.Tensor | None, generation: dict[str, Any]
    ) -> list[str]:
        answers = [""] * len(requests)
        prefix = self._shared_prefix(requests)
        for chosen in self._batches(requests):
            generated = self._generate([requests[index] for index in chosen], features, prefix, generation)
            texts = self.encoder.tokenizer.batch_decode(generated, skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text.strip()
        return answers

    def _batches(self, requests: Sequence[_Request]) -> Iterator[list[int]]:
        """Indices of requests in the order of their lengths: padding costs time."""
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt.ids))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _shared_prefix(self, requests: Sequence[_Request]) -> PromptPrefix | None:
        """What all prompts begin with, if reading it by itself pays: for several prompts, or where it is known."""
        ids = shared_beginning([request.prompt.ids for request in requests], self.encoder.image_token_id)
        if ids != self._prefix[0]:
            if not ids or len(requests) == 1:
                return None
            self._prefix = (ids, PromptPrefix.read(self.vlm.language_model, ids))
        return self._prefix[1]

    def _generate(
        self,
        requests: Sequence[_Request],
        features: torch.Tensor | None,
        prefix: PromptPrefix | None,
        generation: dict[str, Any],
    ) -> torch.Tensor:
        known = prefix.ids if prefix else ()
        ids, mask = _padded([request.prompt.ids[len(known) :] for request in requests], self._pad, "left")
        if prefix:
            rows = len(requests)
            ids = torch.cat([torch.tensor([known]).expand(rows, -1), ids], dim=1)
            mask = torch.cat([torch.ones(rows, len(known), dtype=mask.dtype), mask], dim=1)
            generation = {**generation, **prefix.continued(self.vlm.language_model, rows)}
        inputs = self._inputs(requests, features, ids, mask)
        return self.vlm.generate(**inputs, **generation)

    def _score(self, requests: Sequence[_Request], features: torch.Tensor | None) -> Iterator[Likelihood]:
        ids, mask = _padded([request.prompt.ids for request in requests], self._pad, "left")
        labels, _ = _padded([request.labels for request in requests], IGNORE_INDEX, "left")
        output = self.vlm(
            **self._inputs(requests, features, ids, mask),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(self.vlm.device),
            labels=labels.to(self.vlm.device),
        )
        scores = -F.cross_entropy(output.logits.float(), output.targets, reduction="none")
        likeliest = output.logits.argmax(1) == output.targets
        lengths = (labels[:, 1:] != IGNORE_INDEX).sum(1).tolist()
        for of_answer, right in zip(scores.split(lengths), likeliest.split(lengths), strict=True):
            yield Likelihood(float(of_answer.double().sum()), len(of_answer), bool(right.all()))

    def _inputs(
        self, requests: Sequence[_Request], features: torch.Tensor | None, ids: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """What the model takes of padded rows, their images, and questions where it is conditioned on them."""
        device = self.vlm.device
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        shown = [image for request in requests for image in request.images]
        if shown:
            inputs |= {"image_features": features, "image_index": torch.tensor(shown, device=device)}
            inputs["token_counts"] = [self.encoder.num_visual_tokens] * len(shown)
        if shown and self.encoder.conditioned:
            # One row a block of image places: a question about two images conditions both.
            queries = [request.prompt.query for request in requests for _ in request.images]
            query_ids, query_mask = _padded(queries, self._pad, "right")
            inputs |= {"query_input_ids": query_ids.to(device), "query_attention_mask": query_mask.to(device)}
        return inputs


def parameter_counts(model: PreTrainedModel, language_model: Iterable[torch.nn.Parameter]) -> dict[str, int | None]:
    """The parameter fields of a result row, None where nothing is known of the language model; tied weights count once.

    Non-embedding parameters leave out the token embedding and the language-model head.
    """
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(weight) for table in tables if table is not None for weight in table.parameters()}
    weights = {id(weight): weight.numel() for weight in language_model}
    return {
        "llm_params": sum(weights.values()) or None,
        "llm_params_non_embedding": sum(n for key, n in weights.items() if key not in embeddings) or None,
        "total_params": sum(weight.numel() for weight in model.parameters()),
    }


def _padded(rows: Sequence[Sequence[int]], pad: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T] padded on one side to the longest row, and the mask that is 1 at real tokens."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = 1
    return ids, mask
