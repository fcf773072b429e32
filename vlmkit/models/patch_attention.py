"""What patches are to each other inside a ViT's block: attention received, and keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import nn

from vlmkit.errors import UserError


def attention_of(block: nn.Module) -> Any:
    """The self-attention of a block of open_clip, timm or transformers.

    Raises UserError if it is of a kind that :func:`queries_and_keys` cannot read.
    """
    own = getattr(block, "attn", None)  # timm's other kinds turn queries and keys by position, or take differences
    if isinstance(own, nn.MultiheadAttention | Attention):
        return own
    for attention in (getattr(block, name, None) for name in ("self_attn", "attention")):  # of transformers
        if hasattr(attention, "k_proj"):
            return attention
    raise UserError(
        f"The compressor prune reads the attention of a ViT, and that of a {type(block).__name__} cannot be read; "
        "choose a plain ViT, or another compressor (avgpool)."
    )


@contextmanager
def attention_inputs(attention: nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that gets what an attention is given, [B, T, D], each time it runs inside."""
    inputs: list[torch.Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs.append(given[0] if given else named["hidden_states"])

    handle = attention.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()


def queries_and_keys(attention: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of every head, [B, heads, T, D / heads] each, for what an attention is given."""
    if isinstance(attention, nn.MultiheadAttention):
        assert attention.in_proj_weight is not None
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        both = [F.linear(tokens, weights[i], biases[i]) for i in (0, 1)]
    elif isinstance(attention, Attention):
        both = [*attention.qkv(tokens).chunk(3, dim=-1)[:2]]
    else:
        both = [attention.q_proj(tokens), attention.k_proj(tokens)]
    heads = getattr(attention, "num_heads", None) or attention.num_attention_heads
    queries, keys = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in both)
    if isinstance(attention, Attention):
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    return queries, keys


def received_attention(
    queries: torch.Tensor, keys: torch.Tensor, num_prefix_tokens: int, from_class_token: bool
) -> torch.Tensor:
    """The attention that each patch receives, a mean over the heads: [B, P].

    From the class token (the first), or a mean over all patches; weights are those among all tokens.
    """
    asking = queries[:, :, :1] if from_class_token else queries[:, :, num_prefix_tokens:]
    # Head by head: the weights of all heads at once would be the largest tensor of the whole tower.
    heads = [
        (asking[:, head] @ keys[:, head].mT / keys.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)
        for head in range(keys.shape[1])
    ]
    return torch.stack(heads).mean(dim=0)[:, num_prefix_tokens:]
