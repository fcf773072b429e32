"""Language models and their tokenizers: embedded, local, from the hub, or of true shape with fresh weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vlmkit import registry
from vlmkit.config import LLMConfig
from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.errors import UserError
from vlmkit.models.seeding import seeded
from vlmkit.runs import is_run, open_model

EMBEDDED_TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "tokenizer"

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "ASSISTANT:{% generation %} {{ message['content'] }}{{ eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['role'] | upper }}: {{ message['content'] }}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""For tokenizers that come without a chat template (base models)."""


_CPU = torch.device("cpu")


def load_llm(
    llm: LLMConfig, seed: int, dtype: torch.dtype = torch.float32, device: torch.device = _CPU
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model and tokenizer that a recipe names, on the CPU in ``dtype`` unless told otherwise.

    ``llm.name`` is a registry name or alias (embedded models start from fresh weights in float32, a function of
    ``seed`` alone), a local directory in hub layout, a finished VLM run, or a hub id. With ``weights="random"`` a
    registry model has its true shape and vocabulary size, the embedded tokenizer, and fresh weights drawn on
    ``device`` (where drawing billions takes no minutes), a function of seed, dtype and kind of device. The tokenizer
    always has a chat template, a padding token and ``<image>``. Only safetensors are read and no remote code runs.
    Raises UserError when the model or its tokenizer cannot be had.
    """
    with seeded(seed, device):
        if registry.is_llm(llm.name) and registry.llm(llm.name).embedded:
            model, tokenizer = _fresh(registry.llm(llm.name), torch.float32)
        elif llm.weights == "random":
            with device:
                model, tokenizer = _fresh(registry.llm(llm.name), dtype)
        elif is_run(llm.name):
            model, tokenizer = _from_run(llm.name, dtype)
        else:
            model, tokenizer = _pretrained(llm.name, dtype)
        complete(model, tokenizer)
    return model, tokenizer


def llm_config(llm: LLMConfig) -> PreTrainedConfig:
    """The configuration of the language model that a recipe names, for a plan: no weights are read.

    Registry names need no file. Raises UserError when the model's description cannot be had.
    """
    if llm.weights == "random" or registry.is_llm(llm.name):
        return _config(registry.llm(llm.name))
    if is_run(llm.name):
        return AutoConfig.from_pretrained(open_model(llm.name, "train-vlm"), local_files_only=True).text_config
    with _or_ways_on(llm.name):
        return AutoConfig.from_pretrained(llm.name, **_source_options(llm.name))


def _config(facts: registry.LLMFacts) -> PreTrainedConfig:
    return AutoConfig.for_model(
        facts.architecture,
        vocab_size=facts.vocab_size,
        hidden_size=facts.hidden_size,
        intermediate_size=facts.intermediate_size,
        num_hidden_layers=facts.num_layers,
        num_attention_heads=facts.num_heads,
        num_key_value_heads=facts.num_kv_heads,
        head_dim=facts.head_dim,
        tie_word_embeddings=facts.tied_embeddings,
    )


def _fresh(facts: registry.LLMFacts, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER, local_files_only=True)
    config = _config(facts)
    if facts.embedded:
        # GPT-2's 0.02 is right for its width of 768; at a few dozen it leaves attention uniform for hundreds of steps.
        config.initializer_range = 0.55 * facts.hidden_size**-0.5
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return AutoModelForCausalLM.from_config(config, dtype=dtype), tokenizer


def _from_run(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from vlmkit.models.vlm import VLM

    directory = open_model(name, "train-vlm")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return VLM.from_pretrained(directory, dtype=dtype).language_model, tokenizer


def _pretrained(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = str(registry.llm(name).hub_id) if registry.is_llm(name) else name
    options = _source_options(source)
    with _or_ways_on(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, dtype=dtype, **options)
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer of {name} has no fast (Rust) form, which label masks need; save it with a tokenizer.json."
        )
    return model, tokenizer


def _source_options(source: str) -> dict[str, Any]:
    """How to read a local directory or a hub id; for what can be neither, the refusal names the nearest entries."""
    local = Path(source).is_dir()
    if not local and "/" not in source and os.sep not in source:
        registry.llm(source)
    return {"local_files_only": local, "trust_remote_code": False}


@contextmanager
def _or_ways_on(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        local = Path(name).is_dir()
        where = "in this directory" if local else "here (no such directory, not in the hub cache, not downloadable)"
        raise UserError(
            f"The language model {name} cannot be had {where}: {reason}; go on with --llm PATH (a local directory with "
            "config.json, *.safetensors and a tokenizer), --llm tiny (embedded), --weights random (true size, to "
            "measure) or --dry-run (the plan only)."
        ) from error


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer what every conversation needs, and the model a row for each token."""
    if tokenizer.eos_token is None:
        raise UserError("The tokenizer has no end token, so no answer could end; set eos_token in its configuration.")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().get_parameter("weight").shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
