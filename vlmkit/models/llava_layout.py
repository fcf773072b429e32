"""LLaVA-1.5 in transformers' layout (``LlavaForConditionalGeneration``): uncompressed VLMs out, its checkpoints in.

A VLM whose visual tokens are all patches of a CLIP-style ViT is LLaVA-1.5 (arXiv 2310.03744): patches of the
penultimate block without the class token, Linear, GELU, Linear, and a language model. Nothing is converted but names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vlmkit.config import CompressorConfig
from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.errors import UserError
from vlmkit.models.export import clip_vision_model, no_progress_bar
from vlmkit.models.llm import complete
from vlmkit.models.processor import READS_PARTS, pad_and_resize
from vlmkit.models.transformers_tower import TransformersTower, transformers_config
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.models.vlm_config import VLMConfig, transforms_logits
from vlmkit.registry import CLIP_MEAN

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "ASSISTANT:{% generation %} {{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% else %}{{ message['content'] }} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""LLaVA-1.5's conversations, for checkpoints whose own template cannot take plain strings or ends no answer."""

_LLAVA: dict[str, Any] = {
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
}
"""The choices of LLaVA-1.5 that its configuration spells out, and the only ones that a VLM can express."""

_PUBLISHED_NAMES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
_LAYOUT = "LLaVA's layout (LlavaForConditionalGeneration)"
EVERY_PATCH = "none"
"""The compressor that keeps every patch."""
_IDENTITIES = ("none", "avgpool", "downsample")
"""Compressors that change nothing where there are as many tokens as patches."""
_WAY_ON = "load this model through vlmkit (import vlmkit)"
_PROBE = "\ue000"


def export_llava(vlm: VLM, tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> str | None:
    """Write ``vlm`` so that ``LlavaForConditionalGeneration`` and ``AutoProcessor`` load it, without vlmkit.

    Logits and greedy answers are equal on equal pixels; the processor pads, resizes and normalises as vlmkit does.
    Returns what a user of the processor has to know, if anything. Raises UserError for models that are not LLaVA: a
    compressor that leaves fewer tokens than patches, a tower that is no plain ViT, a language model that does more
    than multiply by its output matrix.
    """
    llava, tower = _stock_llava(vlm), vlm.vision_tower
    with no_progress_bar():
        llava.save_pretrained(directory, state_dict=_published_state(llava), save_original_format=False)
    mean, std = (tower.config["preprocess_cfg"][key] for key in ("mean", "std"))
    LlavaProcessor(
        pad_and_resize(tower.image_size, mean, image_std=std),
        tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy=llava.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # the class token, which the strategy takes off again
        chat_template=READS_PARTS + tokenizer.get_chat_template(),
    ).save_pretrained(directory)
    return " ".join(_notes(vlm, tokenizer, mean)) or None


def _stock_llava(vlm: VLM) -> LlavaForConditionalGeneration:
    """transformers' own model around the parts of ``vlm``, to be saved."""
    tower, llm = vlm.vision_tower, vlm.language_model
    patches = tower.grid[0] * tower.grid[1]
    if not (vlm.config.compressor in _IDENTITIES and vlm.config.num_visual_tokens == patches):
        raise UserError(
            f"{_LAYOUT} has no place for the compressor {vlm.config.compressor} with {vlm.config.num_visual_tokens} of "
            f"{patches} tokens: between tower and projector it keeps every patch; export a model that does "
            f"(--compressor {EVERY_PATCH} --tokens {patches}), or {_WAY_ON}."
        )
    clip = clip_vision_model(tower, _LAYOUT, _WAY_ON)
    config = LlavaConfig(
        vision_config=clip.config,
        text_config=llm.config,
        image_token_index=vlm.config.image_token_id,
        image_seq_length=patches,
        tie_word_embeddings=llm.config.tie_word_embeddings,
        **_LLAVA,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    stock = set(llava.state_dict())
    llava.model.vision_tower = clip
    llava.model.multi_modal_projector.linear_1, _, llava.model.multi_modal_projector.linear_2 = vlm.projector
    llava.model.language_model, llava.lm_head = llm.get_decoder(), llm.get_output_embeddings()
    llava.generation_config = llm.generation_config
    if set(llava.state_dict()) != stock or transforms_logits(llm.config):
        raise UserError(
            f"{_LAYOUT} has no place for the language model {type(llm).__name__} as it is: it holds transformers' own "
            f"decoder and one output matrix, without bias, cap or adapters; {_WAY_ON}."
        )
    return llava


def _published_state(llava: LlavaForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Weights by the names of the published checkpoints, which every reader of the layout knows."""
    state = {}
    for name, tensor in llava.state_dict().items():
        if name == "lm_head.weight" and llava.config.tie_word_embeddings:
            continue
        part = next(part for part in _PUBLISHED_NAMES if name.startswith(part))
        state[_PUBLISHED_NAMES[part] + name.removeprefix(part)] = tensor.contiguous()
    return state


def load_llava(source: str, compressor: CompressorConfig | None, seed: int) -> tuple[VLM, PreTrainedTokenizerBase]:
    """A LLaVA-1.5 checkpoint (directory or hub id) as a VLM, float32 on the CPU, and its tokenizer.

    Tower, projector and language model are the checkpoint's. ``compressor`` None keeps every patch, so that logits are
    the checkpoint's own; any other starts fresh, a function of ``seed`` alone. Only safetensors are read. Raises
    UserError when the checkpoint cannot be had or is another architecture.
    """
    config = _read_config(source)
    with _or_ways_on(source):
        options = _options(source)
        llava = LlavaForConditionalGeneration.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.get_vocab().get(IMAGE_TOKEN) != config.image_token_id:
        raise UserError(
            f"In the tokenizer of {source}, {IMAGE_TOKEN} is not the token {config.image_token_id} that its "
            "config.json names as image_token_index; mend the checkpoint."
        )
    if not _takes_strings(tokenizer):
        tokenizer.chat_template = CHAT_TEMPLATE
    llm = _causal_lm(llava)
    complete(llm, tokenizer)
    with torch.device("meta"):
        tower = TransformersTower(transformers_config(source))
    tower.visual = llava.model.vision_tower
    chosen = compressor or _every_patch(tower)
    vlm = VLM.join(tower, llm, chosen, config.image_token_id, seed)
    projector = llava.model.multi_modal_projector
    vlm.projector[0], vlm.projector[2] = projector.linear_1, projector.linear_2
    return vlm, tokenizer


def llava_config(source: str, compressor: CompressorConfig) -> VLMConfig:
    """The configuration of what :func:`load_llava` gives, for a plan: no weights are read."""
    config = _read_config(source)
    vision = transformers_config(source)
    return VLMConfig(
        vision, config.text_config, compressor.name, compressor.counts, config.image_token_id, compressor.query
    )


def _every_patch(tower: VisionTower) -> CompressorConfig:
    return CompressorConfig(name=EVERY_PATCH, num_visual_tokens=tower.grid[0] * tower.grid[1])


def _read_config(source: str) -> Any:
    """The checkpoint's ``LlavaConfig``, if it is one that vlmkit's parts express."""
    with _or_ways_on(source):
        config = AutoConfig.from_pretrained(source, **_options(source))
    if not _is_clip_llava(config):
        raise UserError(
            f"{source} is no LLaVA-1.5 checkpoint with a CLIP tower (its model_type is {config.model_type}); give a "
            "finished VLM run, or a checkpoint such as llava-hf/llava-1.5-7b-hf."
        )
    if odd := _departures(config):
        raise UserError(
            f"{source} departs from LLaVA-1.5 ({', '.join(odd)}), and vlmkit has no such projector or features; give "
            "a checkpoint such as llava-hf/llava-1.5-7b-hf."
        )
    return config


def is_llava(config: PreTrainedConfig) -> bool:
    """Whether this is the configuration of a checkpoint that :func:`load_llava` takes."""
    return _is_clip_llava(config) and not _departures(config)


def _is_clip_llava(config: Any) -> bool:
    return config.model_type == "llava" and config.vision_config.model_type == "clip_vision_model"


def _departures(config: Any) -> list[str]:
    found = {key: getattr(config, key) for key in _LLAVA}
    if found["vision_feature_layer"] == config.vision_config.num_hidden_layers - 1:  # counted from the other end
        found["vision_feature_layer"] = -2
    return [f"{key} is {found[key]}" for key, value in _LLAVA.items() if found[key] != value]


def _causal_lm(llava: LlavaForConditionalGeneration) -> PreTrainedModel:
    """The language model by itself: the same modules under the class that transformers has for it."""
    decoder = llava.model.language_model
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(decoder.config)
    setattr(llm, llm.base_model_prefix, decoder)
    llm.set_output_embeddings(llava.lm_head)
    llm.config = decoder.config
    llm.generation_config = llava.generation_config
    return llm


def _takes_strings(tokenizer: PreTrainedTokenizerBase) -> bool:
    if tokenizer.chat_template is None:
        return False
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False)
    except TemplateError:
        return False
    return _PROBE in str(text)


def _notes(vlm: VLM, tokenizer: PreTrainedTokenizerBase, mean: Sequence[float]) -> Iterator[str]:
    """What the layout leaves behind, and where the stock processor would do otherwise than training did."""
    if len(vlm.config.token_counts) > 1:
        yield f"Of the token counts it was trained for, only the full {vlm.config.num_visual_tokens} are served here."
    if vlm.config.prompt_order == "text_first":
        yield "This model was trained with images behind the question: put their parts there."
    prompt = str(tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False))
    adds = tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids
    if adds and not (tokenizer.bos_token and prompt.startswith(tokenizer.bos_token)):
        yield (
            "The tokenizer would put tokens before the prompt that this model never saw: give the processor "
            "add_special_tokens=False (in apply_chat_template: processor_kwargs={'add_special_tokens': False})."
        )
    if tuple(mean) != CLIP_MEAN:
        yield (
            "The processor pads images with the tower's mean colour; in training the border had the mean colour of "
            "CLIP's images, so images that are not square give slightly other answers."
        )


def _options(source: str) -> dict[str, Any]:
    return {"local_files_only": Path(source).is_dir(), "trust_remote_code": False}


@contextmanager
def _or_ways_on(source: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"The checkpoint {source} cannot be had: {reason}; give a finished VLM run, or a LLaVA-1.5 checkpoint in "
            "transformers' layout (a local directory with config.json, *.safetensors, a tokenizer and a processor)."
        ) from error
