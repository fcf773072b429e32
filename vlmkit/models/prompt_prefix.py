"""The state of a prompt's beginning: computed once, continued by every prompt that begins so."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.utils import ModelOutput


@dataclass(frozen=True)
class PromptPrefix:
    """Tokens that stand before the first image of many prompts, and their keys and values in every layer.

    Of a prompt of P + R tokens that continues a prefix of P, the language model reads R: of about 2 N (P + R) FLOPs for
    N parameters (arXiv 2411.03312, section 3) 2 N P are saved, once the prefix itself is paid for. What is read still
    attends to the prefix, and generating the answer costs what it did. With the text before the image and one question
    for all images this is the law's case Q = 0: each image costs its visual tokens and the end of the template.
    """

    ids: tuple[int, ...]
    cache: DynamicCache
    """Of one row; it is copied and never written to."""

    @classmethod
    def read(cls, language_model: PreTrainedModel, ids: Sequence[int]) -> PromptPrefix | None:
        """The prefix as this model reads it; None where a model's state cannot be continued by rows of unequal length.

        Padding stands between the prefix and what continues it. Only attention to everything, with positions that the
        model is told (rotary), passes over it: sliding windows and recurrent layers count it in.
        """
        if getattr(language_model.config, "rope_parameters", None) is None:
            return None
        with torch.no_grad():
            output = language_model.get_decoder()(torch.tensor([ids], device=language_model.device), use_cache=True)
        cache = cache_in(output)
        if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return None
        return cls(tuple(ids), cache)

    def continued(self, language_model: PreTrainedModel, num_rows: int) -> dict[str, Cache]:
        """The argument with which ``generate`` continues the prefix in each of ``num_rows`` rows.

        The rows are given whole: prefix, padding, and what follows it.
        """
        cache = deepcopy(self.cache)
        cache.batch_repeat_interleave(num_rows)
        return {cache_argument(language_model): cache}


def cache_in(output: ModelOutput) -> Cache | None:
    """The keys and values in the output of a language model or decoder, by whatever name this release has for them."""
    return next((value for value in output.values() if isinstance(value, Cache)), None)


def cache_argument(model: PreTrainedModel) -> str:
    """What the argument of a language model or decoder is called that takes a cache."""
    # transformers renamed it in 5.24.
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def shared_beginning(prompts: Sequence[list[int]], image_token_id: int) -> tuple[int, ...]:
    """The tokens that all prompts begin with, up to the first image place; each prompt keeps one token at least."""
    # What the first and the last in lexical order share, all share.
    first, last = min(prompts), max(prompts)
    length = 0
    while length < min(map(len, prompts)) - 1 and first[length] == last[length] != image_token_id:
        length += 1
    return tuple(first[:length])
