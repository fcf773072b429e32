"""Attention over packed rows: which implementation computes it, and the mask in the form that implementation wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Union

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import flex_attention_mask

from vlmkit.errors import UserError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Mask: TypeAlias = Union[torch.Tensor, "BlockMask"]
FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers that packed rows can go through, as transformers names them in ``layer_types``."""

FLEX = "vlmkit_flex"
"""transformers' flex attention, with queries, keys and values of one type."""

_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")
_SMALLEST_HEAD = 16
_WORTH_COMPILING = 10**8
"""Weights from which on flex attention is chosen by itself: its kernels take half a minute to compile."""


class Segments(NamedTuple):
    """What the rows of a packed batch are made of, integer tensors [R, T].

    ``sequence_ids``: number of the sequence in its row, from 1 on; 0 is padding. ``branch_ids``: 0 in the prefix of a
    sequence, k in its k-th branch. ``position_ids``: position in the text, where each branch continues the prefix.
    """

    sequence_ids: torch.Tensor
    branch_ids: torch.Tensor
    position_ids: torch.Tensor

    def visibility(self, window: int | None) -> Callable[..., torch.Tensor]:
        """``sees(row, head, query, key)``: may a token see another, by their indices in the row?

        It sees what is before it in its own sequence, in the prefix or its own branch; with a ``window``, only what is
        less than that far away in the text. Padding is a sequence of its own, since no token may see none at all.
        """
        sequence_ids, branch_ids, position_ids = self

        def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            same_sequence = sequence_ids[row, query] == sequence_ids[row, key]
            same_branch = (branch_ids[row, key] == 0) | (branch_ids[row, query] == branch_ids[row, key])
            seen = same_sequence & same_branch & (query >= key)
            return seen if window is None else seen & (position_ids[row, query] - position_ids[row, key] < window)

        return sees


def packed_masks(config: PreTrainedConfig, segments: Segments, dtype: torch.dtype) -> Mask | dict[str, Mask]:
    """The mask of a packed batch for the language model of this configuration, or one for each kind of its layers.

    flex attention gets a BlockMask, the others a tensor [R, 1, T, T] of type ``dtype`` that is added to the scores.
    Raises UserError where rows cannot be packed: the layers are of other kinds, or the implementation takes no mask.
    """
    implementation = config._attn_implementation
    if implementation not in ("eager", "sdpa", FLEX):
        raise UserError(
            f"The attention implementation {implementation} takes no mask for packed rows; "
            "choose another with llm.attention (auto, sdpa or flex)."
        )
    make = _block_mask if implementation == FLEX else _additive_mask
    windows = _windows(config, segments.sequence_ids.shape[1])
    made = {window: make(segments, window, dtype) for window in set(windows.values())}
    masks = {kind: made[window] for kind, window in windows.items()}
    return masks if SLIDING in masks else masks[FULL]


def _windows(config: PreTrainedConfig, length: int) -> dict[str, int | None]:
    """The sliding window of each kind of layer, None where none is shorter than ``length`` tokens.

    Models without ``layer_types`` have one kind of layer, here called full attention whatever its window.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := kinds - {FULL, SLIDING}:
        raise UserError(
            f"The language model has layers of the kind {', '.join(sorted(unknown))}, which cannot keep the sequences "
            "of a packed row apart; choose one whose layers are all attention over the whole text or a sliding window."
        )
    window: int | None = getattr(config, "sliding_window", None)
    if window is not None and window >= length:
        window = None
    return {kind: window if kind == SLIDING else None for kind in kinds} if kinds else {FULL: window}


def _additive_mask(segments: Segments, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    rows, length = segments.sequence_ids.shape
    device = segments.sequence_ids.device
    row = torch.arange(rows, device=device)[:, None, None, None]
    token = torch.arange(length, device=device)
    seen = segments.visibility(window)(row, None, token[:, None], token)
    lowest = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=device)
    return torch.where(seen, torch.zeros_like(lowest), lowest)


def _block_mask(segments: Segments, window: int | None, dtype: torch.dtype) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = segments.sequence_ids.shape
    device = segments.sequence_ids.device
    # Compiled, as transformers does it: otherwise every pair of tokens would be looked at in memory.
    return create_block_mask(segments.visibility(window), rows, None, length, length, device, _compile=True)


def _flex_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    from transformers.integrations.flex_attention import flex_attention_forward

    # Autocast does not know flex attention, and rotary embeddings leave queries and keys in float32 beside bf16 values.
    output: tuple[torch.Tensor, torch.Tensor | None]
    output = flex_attention_forward(module, query.to(value.dtype), key.to(value.dtype), value, *args, **kwargs)
    return output


AttentionInterface.register(FLEX, _flex_attention)
AttentionMaskInterface.register(FLEX, flex_attention_mask)


def set_attention(llm: PreTrainedModel, setting: Literal["auto", "sdpa", "flex"], device: torch.device) -> None:
    """Let the language model compute attention as the recipe says (see :func:`chosen_attention`)."""
    llm.set_attn_implementation(chosen_attention(llm, setting, device))


def chosen_attention(llm: PreTrainedModel, setting: Literal["auto", "sdpa", "flex"], device: torch.device) -> str:
    """The attention implementation that the recipe's ``llm.attention`` means for this model on this device.

    "auto" is flex attention on CUDA for models of some size whose shapes allow it, otherwise what transformers chooses
    (sdpa, and eager for models whose scores are capped). Raises UserError if the model or the device cannot have what
    is asked, or rows cannot be packed for the model at all.
    """
    if llm._is_stateful:
        raise UserError(
            f"{llm.config.model_type} models carry a state from token to token, which mixes the sequences of a row; "
            "choose a language model whose layers are attention."
        )
    _windows(llm.config, 1)
    if setting == "sdpa":
        obstacle = _sdpa_obstacle(llm)
        chosen = "sdpa"
    else:
        obstacle = _flex_obstacle(llm, device)
        chosen = FLEX
        if setting == "auto" and (obstacle is not None or llm.num_parameters() < _WORTH_COMPILING):
            obstacle, chosen = None, "eager" if _sdpa_obstacle(llm) else "sdpa"
    if obstacle is not None:
        raise UserError(f"llm.attention {setting} cannot be had: {obstacle}; use llm.attention auto.")
    return chosen


@contextmanager
def plain_attention(llm: PreTrainedModel) -> Iterator[None]:
    """Within the block, a model that attends to packed rows by flex attention uses sdpa: short texts of ever new
    lengths would have a kernel compiled for each."""
    chosen = llm.config._attn_implementation
    if chosen == FLEX:
        llm.config._attn_implementation = "eager" if _sdpa_obstacle(llm) else "sdpa"
    try:
        yield
    finally:
        llm.config._attn_implementation = chosen


def _sdpa_obstacle(llm: PreTrainedModel) -> str | None:
    if not llm._supports_sdpa or getattr(llm.config, "attn_logit_softcapping", None) is not None:
        return f"{llm.config.model_type} models need attention that sdpa does not compute"
    return None


def _flex_obstacle(llm: PreTrainedModel, device: torch.device) -> str | None:
    config = llm.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if device.type != "cuda":
        return "flex attention is trained with on NVIDIA GPUs only"
    if not llm._supports_flex_attn:
        return f"transformers has no flex attention for {config.model_type} models"
    if head_dim < _SMALLEST_HEAD:
        return f"the attention heads are {head_dim} wide, and flex attention needs {_SMALLEST_HEAD}"
    if any(getattr(config, name, 0.0) for name in _DROPOUTS):
        return "flex attention has no dropout, which this model trains with"
    return None
