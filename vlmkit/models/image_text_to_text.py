"""Any image-text-to-text model of transformers with its own processor: a directory in hub layout, or a hub id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from vlmkit.errors import UserError


def read_config(source: str) -> PreTrainedConfig:
    """The configuration of a model, no weights read. Raises UserError when it cannot be had."""
    with _or_ways_on(source):
        return AutoConfig.from_pretrained(source, **_options(source))


def load_image_text_to_text(source: str, device: torch.device) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, in evaluation mode on the device, and its processor.

    On the CPU it is in float32, elsewhere in the type it is published in. It decodes greedily whatever its
    generation_config.json says (no sampling, beams or penalties), and its prompts are padded on the left. Only
    safetensors are read and no remote code runs. Raises UserError when model or processor cannot be had, weights are
    missing, or there is no chat template to prompt it by.
    """
    with _or_ways_on(source):
        processor = AutoProcessor.from_pretrained(source, **_options(source))
        given: Any = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=torch.float32 if device.type == "cpu" else "auto",
            use_safetensors=True,
            output_loading_info=True,
            **_options(source),
        )
    model, loaded = given
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise UserError(
            f"The weights of {source} lack {len(missing)} that its config.json asks for (the first: {missing[0]}), and "
            "would be random; download the model again, or give another."
        )
    if not isinstance(processor, ProcessorMixin) or not processor.chat_template:
        raise UserError(
            f"{source} has no processor with a chat template, so nothing says how it is prompted; add a "
            "chat_template.jinja and a processor_config.json, or give another model."
        )
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.can_generate():  # by transformers' means: vlmkit's own models are greedy by themselves
        model.generation_config = _greedy(model.generation_config, tokenizer)
    return model.to(device).eval(), processor


def _greedy(own: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        bos_token_id=own.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )


def _options(source: str) -> dict[str, Any]:
    return {"local_files_only": Path(source).is_dir(), "trust_remote_code": False}


@contextmanager
def _or_ways_on(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"{source} is no finished run, and no model can be had by that name: {reason}; give "
            "the --out of a run, a directory with config.json, *.safetensors and a processor, or a hub id."
        ) from error
