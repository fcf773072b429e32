"""The processor saved beside every VLM: what ``AutoProcessor`` gives, and what inference servers ask of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor, BatchFeature, LlavaImageProcessor
from transformers.processing_utils import MultiModalData, ProcessorMixin

from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.models.vlm import VLM
from vlmkit.models.vlm_config import VLMConfig, require_count
from vlmkit.registry import CLIP_MEAN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READS_PARTS = """\
{%- set plain = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['content'] is not string -%}
{%- set content = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- set gap = '' if content.text == '' or content.text.endswith('\\n') else '\\n' -%}
{%- set content.text = content.text ~ (gap ~ '<image>\\n' if part['type'] == 'image' else part['text']) -%}
{%- endfor -%}
{%- set message = {'role': message['role'], 'content': content.text | trim} -%}
{%- endif -%}
{%- set plain.messages = plain.messages + [message] -%}
{%- endfor -%}
{%- set messages = plain.messages -%}
"""
"""Before a chat template over plain strings: lets it read messages made of parts, ``{"type": "image"}`` and so on.

An image stands on a line of its own where its part stands, as training puts it before or after the words."""

_TEXT_DEFAULTS = {
    "add_special_tokens": False,
    "padding": True,
    "padding_side": "left",
    "return_token_type_ids": False,
}


class VLMProcessor(ProcessorMixin):
    """Images and rendered conversations to the inputs of :class:`~vlmkit.models.vlm.VLM`.

    Images are padded to squares and resized as in training, and stay uint8: the tower normalises them. Each
    ``<image>`` becomes ``num_visual_tokens`` of them; texts are padded on the left, and get no special tokens beyond
    those of the chat template. ``token_counts`` are the numbers of visual tokens that the model serves; an image gets
    the most of them unless a call says otherwise. For a ``conditioned`` compressor, ``questions`` (one an image) become
    ``query_input_ids`` and ``query_attention_mask``; ``apply_chat_template`` finds them itself: the first question of
    each conversation.
    """

    def __init__(
        self,
        image_processor: LlavaImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        token_counts: Sequence[int],
        conditioned: bool,
        chat_template: str | None = None,
    ) -> None:
        self.token_counts = sorted(token_counts)
        self.num_visual_tokens = self.token_counts[-1]
        self.conditioned = conditioned
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def of(cls, vlm: VLM, tokenizer: PreTrainedTokenizerBase) -> VLMProcessor:
        """The processor of a model."""
        return cls(
            # The tower normalises; CLIP's mean is the colour of the border, whichever tower it is.
            pad_and_resize(vlm.vision_tower.image_size, CLIP_MEAN, do_rescale=False, do_normalize=False),
            tokenizer,
            vlm.config.token_counts,
            vlm.compressor.conditioned,
        )

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        questions: str | Sequence[str] | None = None,
        num_visual_tokens: int | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """``input_ids`` and ``attention_mask`` [B, T], and ``pixel_values`` uint8 [I, 3, S, S] of all images in order.

        ``text`` are rendered conversations, in which every image has its ``<image>`` already. With
        ``num_visual_tokens``, one of ``token_counts``, every image has so many, and ``token_counts`` (a list, one an
        image) tells the model. With ``return_mm_token_type_ids``, ``mm_token_type_ids`` [B, T] is 1 at visual tokens.
        Options of image processor and tokenizer are passed on. Raises UserError for a count that is not served.
        """
        defaults = {name: value for name, value in _TEXT_DEFAULTS.items() if name not in kwargs}
        kwargs["text_kwargs"] = defaults | kwargs.get("text_kwargs", {})
        given = self if num_visual_tokens is None else self._at(num_visual_tokens)
        inputs = super(VLMProcessor, given).__call__(images=images, text=text, **kwargs)
        if num_visual_tokens is not None and "pixel_values" in inputs:
            inputs["token_counts"] = [num_visual_tokens] * len(inputs["pixel_values"])
        if questions is not None:
            inputs.update(self._queries([questions] if isinstance(questions, str) else list(questions)))
        return inputs

    def _at(self, num_visual_tokens: int) -> VLMProcessor:
        """The same processor for another number of visual tokens."""
        require_count(num_visual_tokens, self.token_counts)
        other = copy(self)
        other.num_visual_tokens = num_visual_tokens
        return other

    def _queries(self, questions: list[str]) -> Mapping[str, Any]:
        plain = [question.replace(IMAGE_TOKEN, "").strip() for question in questions]
        encoded = self.tokenizer(plain, padding=True, padding_side="right", return_tensors="pt")
        return {f"query_{name}": encoded[name] for name in ("input_ids", "attention_mask")}

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands in the text for an image."""
        return IMAGE_TOKEN * self.num_visual_tokens

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Any] | None = None, num_visual_tokens: int | None = None, **kwargs: Any
    ) -> MultiModalData:
        """Visual tokens of images of these sizes; each is one row of ``pixel_values``."""
        if image_sizes is None:
            return MultiModalData()
        images, tokens = len(image_sizes), num_visual_tokens or self.num_visual_tokens
        return MultiModalData(num_image_tokens=[tokens] * images, num_image_patches=[1] * images)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers, for contents that are strings or lists of parts (text, image)."""
        template = READS_PARTS + self.tokenizer.get_chat_template(chat_template)
        rendered = super().apply_chat_template(conversation, template, **kwargs)
        if self.conditioned and isinstance(rendered, BatchFeature) and "pixel_values" in rendered:
            conversations = conversation if isinstance(conversation[0], list) else [conversation]
            rendered.update(self._queries([text for messages in conversations for text in _questions(messages)]))
        return rendered


def pad_and_resize(image_size: int, mean: Sequence[float], **options: Any) -> LlavaImageProcessor:
    """Pad to a square with a border of the colour ``mean``, then resize: what training does, in transformers' terms."""
    return LlavaImageProcessor(
        do_pad=True,
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        **options,
    )


def _questions(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first question of a conversation, once for each of its images."""
    contents = [message["content"] for message in messages]
    parts = [[{"type": "text", "text": content}] if isinstance(content, str) else content for content in contents]
    num_images = sum(
        part["text"].count(IMAGE_TOKEN) if part["type"] == "text" else 1 for content in parts for part in content
    )
    asked = next(content for message, content in zip(messages, parts, strict=True) if message["role"] == "user")
    return ["".join(part.get("text", "") for part in asked)] * num_images


AutoProcessor.register(VLMConfig, VLMProcessor)
