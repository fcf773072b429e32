"""The models that training starts from and that evaluation reads: parts joined afresh, or those of an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from huggingface_hub.utils import enable_progress_bars
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from vlmkit import registry
from vlmkit.config import DataConfig, TrainConfig, VLMRecipe
from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.errors import UserError
from vlmkit.models.adapters import add_adapters
from vlmkit.models.attention import set_attention
from vlmkit.models.compressors import COMPRESSORS, shrunken_image_size
from vlmkit.models.kernels import use_liger
from vlmkit.models.llava_layout import llava_config, load_llava
from vlmkit.models.llm import load_llm
from vlmkit.models.towers import default_image_size, find_tower, find_tower_config, tower_from_config
from vlmkit.models.transformers_tower import is_hub_directory
from vlmkit.models.vlm import VLM
from vlmkit.models.vlm_config import VLMConfig
from vlmkit.runs import is_run, open_model
from vlmkit.training.distributed import DistributedContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Stage = Literal["align", "finetune"]

# Bars for weights that load in a blink would break up our own display; those of hub downloads stay.
transformers_logging.disable_progress_bar()
enable_progress_bars()


def stage_settings(recipe: VLMRecipe, stage: Stage) -> tuple[TrainConfig, DataConfig]:
    """The training section and the data of a stage."""
    if stage == "align":
        return recipe.align, recipe.align_data or recipe.data
    return recipe.finetune, recipe.data


def build_vlm(
    recipe: VLMRecipe, stage: Stage, init: str | None, context: DistributedContext
) -> tuple[VLM, PreTrainedTokenizerBase]:
    """The model a stage starts from, parts joined afresh or those of ``init``, set up as the recipe says.

    Raises UserError for what cannot be loaded, does not fit together, or cannot run on this device.
    """
    # A language model that stays frozen is never held in more than it trains with.
    frozen = stage == "align" or recipe.lora is not None
    half = frozen and stage_settings(recipe, stage)[0].precision == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    vlm, tokenizer = _join(recipe, dtype, context) if init is None else _continued(recipe, init, dtype)
    if recipe.llm.gradient_checkpointing:
        vlm.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if stage == "finetune":
        if recipe.vision_tower.gradient_checkpointing and recipe.train_tower:
            vlm.vision_tower.set_gradient_checkpointing(True)
        if recipe.lora is not None:
            add_adapters(vlm.language_model, recipe.lora, recipe.seed)
    vlm.config.prompt_order, vlm.config.condition_on = recipe.prompt_order, recipe.compressor.condition_on
    set_attention(vlm.language_model, recipe.llm.attention, context.device)
    if recipe.llm.kernels == "liger":
        use_liger(vlm.language_model, context.device)
    return vlm, tokenizer


def _join(recipe: VLMRecipe, dtype: torch.dtype, context: DistributedContext) -> tuple[VLM, PreTrainedTokenizerBase]:
    """Parts joined afresh, the language model in ``dtype``."""
    llm, tokenizer = load_llm(recipe.llm, recipe.seed, dtype, context.device)
    name = recipe.vision_tower.name
    tower = find_tower(name, tower_image_size(name, recipe), recipe.seed)
    image_token_id = tokenizer.get_vocab()[IMAGE_TOKEN]
    # Before its features are cached: batch norms of a tower in training mode would look at the batch.
    return VLM.join(tower.eval(), llm, recipe.compressor, image_token_id, recipe.seed), tokenizer


def _continued(recipe: VLMRecipe, init: str, dtype: torch.dtype) -> tuple[VLM, PreTrainedTokenizerBase]:
    """The model of an earlier VLM run or of a LLaVA checkpoint, the language model of a run in ``dtype``."""
    if not is_run(init):
        return load_llava(init, recipe.compressor, recipe.seed)
    vlm, tokenizer = load_vlm(init)
    torch.nn.Module.to(vlm.language_model, dtype)
    have, want = vlm.config, recipe.compressor
    if (have.compressor, have.token_counts, have.query) != (want.name, [*want.counts], want.query):
        raise UserError(
            f"{init} has the compressor {have.compressor} with {_listed(have.token_counts)} tokens and the query "
            f"{have.query}, but {want.name} with {_listed(want.counts)} and {want.query} is asked for; start from a "
            "run with the same compressor, or leave --init out."
        )
    return vlm, tokenizer


def tower_image_size(name: str, recipe: VLMRecipe) -> int | None:
    """The image size to build the tower called ``name`` for; None: its own.

    It is the recipe's; where that says nothing and the language model is not embedded, ``default_image_size``; and a
    smaller one where that is how the compressor makes fewer tokens. Raises UserError for a count that no smaller image
    has.
    """
    llm, compressor = recipe.llm.name, recipe.compressor
    embedded = registry.is_llm(llm) and registry.llm(llm).embedded
    size = recipe.vision_tower.image_size or (None if embedded else default_image_size(name))
    if COMPRESSORS[compressor.name].placement != "image":
        return size
    with torch.device("meta"):
        full = tower_from_config(find_tower_config(name, size))
    return shrunken_image_size(compressor.counts, full.grid, full.patch_size)


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def load_vlm(run: str | Path) -> tuple[VLM, PreTrainedTokenizerBase]:
    """Model (float32, on the CPU) and tokenizer of a finished VLM run, or of a LLaVA-1.5 directory as it stands.

    Raises UserError if ``run`` is neither, and if its files are damaged or of another version of vlmkit.
    """
    if not is_run(run) and is_hub_directory(str(run)):
        return load_llava(str(run), None, seed=0)
    directory = open_model(run, "train-vlm")
    try:
        vlm = VLM.from_pretrained(directory, dtype=torch.float32)
        return vlm, AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # configurations, weights and tokenizers of all kinds fail in all kinds of ways
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise UserError(
            f"The model of {run} cannot be read ({reason}); it is damaged or of another version of vlmkit: restore it, "
            "or train it again."
        ) from error


def encoder_of(
    vlm: VLM, tokenizer: PreTrainedTokenizerBase, max_length: int, num_visual_tokens: int | None = None
) -> ConversationEncoder:
    """The encoder that prompts a model as it was trained, for one of its token counts (default: the most).

    Raises UserError for a count that the model does not serve.
    """
    config = vlm.config
    count = config.num_visual_tokens if num_visual_tokens is None else num_visual_tokens
    config.require_count(count)
    return ConversationEncoder(
        tokenizer, count, max_length, vlm.compressor.conditioned, config.condition_on, config.prompt_order
    )


def initial_config(recipe: VLMRecipe) -> VLMConfig | None:
    """The configuration of the model that ``recipe.init`` gives, no weights read; None where parts are joined afresh.

    Raises UserError as loading it would, for what a configuration can tell.
    """
    if recipe.init is None:
        return None
    if is_run(recipe.init):
        return VLMConfig.from_pretrained(open_model(recipe.init, "train-vlm"), local_files_only=True)
    return llava_config(recipe.init, recipe.compressor)
