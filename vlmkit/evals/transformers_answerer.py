"""Answers of any image-text-to-text model of transformers, prompted as its own processor and chat template say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image as PILImage

from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.errors import UserError
from vlmkit.evals.generation import MAX_NEW_TOKENS, ImagePrompts, parameter_counts

if TYPE_CHECKING:
    from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

Conversation = list[dict[str, Any]]
"""Messages as processors take them, images among their parts."""

_PROBES = ((224, 224), (480, 640), (1200, 300))
"""Heights and widths of images by which it is found whether all have equally many visual tokens."""


@dataclass(frozen=True)
class _Request:
    """A prompt as it will be read; ``pixels`` counts those of all its images."""

    conversation: Conversation
    num_images: int
    pixels: int
    num_characters: int


class TransformersAnswerer:
    """Answers questions with a model that transformers loads, at most ``batch_size`` prompts at a time.

    ``model`` and ``processor`` are those of ``models.image_text_to_text``. The processor gets images as they were
    decoded, and resizes, crops or tiles them as it does for every user of the model. Images stand where the prompt has
    ``<image>``, or before the first question. Every prompt reads its images anew; a batch holds prompts with equally
    many images and of similar length, padded on the left.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        batch_size: int,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.visual_tokens = self._count_visual_tokens()

    @property
    def transform(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Images stay as they were decoded."""
        return _as_decoded

    @property
    def facts(self) -> dict[str, Any]:
        """``visual_tokens`` is None where images have different numbers of them, by their size; the parameters of the
        language model are None where transformers does not say which part that is."""
        head = self.model.get_output_embeddings()
        decoder = self.model.get_decoder()
        language_model = [] if decoder is self.model else [*decoder.parameters(), *(head.parameters() if head else ())]
        return {
            **parameter_counts(self.model, language_model),
            "visual_tokens": self.visual_tokens,
            "compressor": None,
            "query": None,
        }

    @torch.inference_mode()
    def answer(self, window: Sequence[ImagePrompts], max_new_tokens: int | None = None) -> list[list[str]]:
        """The decoded answers, stripped and without special tokens, one list an item, in the order given.

        ``max_new_tokens`` is the room for one (None: the answerer's own).
        Raises UserError for a prompt whose places for images are not as many as its images.
        """
        requests = [self._request(item, prompt) for item in window for prompt in item.prompts]
        room = max_new_tokens or self.max_new_tokens
        answers = [""] * len(requests)
        for chosen in self._batches(requests):
            inputs = self._read([requests[index].conversation for index in chosen])
            generated = self.model.generate(**inputs, max_new_tokens=room)  # type: ignore[operator]
            new = _behind(inputs["input_ids"], generated)
            texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text.strip()
        flat = iter(answers)
        return [[next(flat) for _ in item.prompts] for item in window]

    def _request(self, item: ImagePrompts, prompt: str) -> _Request:
        conversation = _conversation(item, prompt)
        text = str(self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False))
        pixels = sum(image.shape[-2] * image.shape[-1] for image in item.images)
        return _Request(conversation, len(item.images), pixels, len(text))

    def _batches(self, requests: Sequence[_Request]) -> Iterator[list[int]]:
        """Indices of requests that are read together. Not every processor takes prompts with and without images."""

        def num_images(index: int) -> int:
            return requests[index].num_images

        def length(index: int) -> tuple[int, int, int]:
            request = requests[index]
            # Images of one number of tokens add the same to all lengths; others, the more the larger they are.
            return request.num_images, 0 if self.visual_tokens else request.pixels, request.num_characters

        for _, group in groupby(sorted(range(len(requests)), key=length), num_images):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                yield alike[start : start + self.batch_size]

    def _read(self, conversations: list[Conversation]) -> BatchFeature:
        inputs: Any = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def _count_visual_tokens(self) -> int | None:
        config = self.model.config
        image_token = getattr(config, "image_token_id", None)
        # Layers that attend to an image across put one token into the text for it, however many they look at.
        if image_token is None or getattr(config.get_text_config(), "cross_attention_layers", None):
            return None
        counts = set()
        for height, width in _PROBES:
            grey = torch.full((3, height, width), 127, dtype=torch.uint8)
            inputs = self._read([_conversation(ImagePrompts("probe", [grey], ["?"]), "?")])
            counts.add(int((inputs["input_ids"] == image_token).sum()))
        return counts.pop() if len(counts) == 1 else None


def _as_decoded(image: torch.Tensor) -> torch.Tensor:
    return image


def _conversation(item: ImagePrompts, prompt: str) -> Conversation:
    """The dialogue up to where the answer begins, every text and image a part of its message."""
    questions = [*(turn.question for turn in item.history), prompt]
    places = sum(question.count(IMAGE_TOKEN) for question in questions)
    if places == 0:
        questions[0] = IMAGE_TOKEN * len(item.images) + questions[0]
    elif places != len(item.images):
        raise UserError(
            f"Sample {item.id} has {len(item.images)} images but {places} places for one ({IMAGE_TOKEN}); make them "
            "agree, or leave the places out."
        )
    images = (PILImage.fromarray(image.permute(1, 2, 0).numpy()) for image in item.images)
    messages: Conversation = []
    for question, turn in zip(questions, [*item.history, None], strict=True):
        content: list[dict[str, Any]] = []
        first, *others = question.split(IMAGE_TOKEN)
        content += _text(first)
        for text in others:
            content += [{"type": "image", "image": next(images)}, *_text(text)]
        messages.append({"role": "user", "content": content})
        if turn is not None:
            messages.append({"role": "assistant", "content": _text(turn.answer)})
    return messages


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text.strip()}] if text.strip() else []


def _behind(prompts: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """The new tokens: most models give them behind the prompt, those that generate from embeddings by themselves."""
    length = prompts.shape[1]
    return generated[:, length:] if torch.equal(generated[:, :length], prompts) else generated
