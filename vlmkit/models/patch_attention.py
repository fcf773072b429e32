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


def check_readable(block: nn.Module) -> None:
    """Raise UserError if the block's attention is of a kind that :func:`queries_and_keys` cannot read."""
    if not isinstance(getattr(block, "attn", None), nn.MultiheadAttention | Attention):
        raise UserError(
            f"The compressor prune reads the attention of a ViT, and that of a {type(block).__name__} cannot be read; "
            "choose a plain ViT, or another compressor (avgpool)."
        )


@contextmanager
def attention_inputs(block: Any) -> Iterator[list[torch.Tensor]]:
    """A list that gets what the block's attention is given, [B, T, D], each time the block runs inside."""
    inputs: list[torch.Tensor] = []
    handle = block.attn.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        handle.remove()


def queries_and_keys(block: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys of every head, [B, heads, T, D / heads] each, for what the block's attention is given."""
    attention, width = block.attn, tokens.shape[-1]
    if isinstance(attention, nn.MultiheadAttention):
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        assert weight is not None
        projected = F.linear(tokens, weight[: 2 * width], None if bias is None else bias[: 2 * width])
    else:
        projected = attention.qkv(tokens)[..., : 2 * attention.attn_dim]
    queries, keys = projected.unflatten(2, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
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
