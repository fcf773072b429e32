"""What one answer costs in FLOPs, and how a budget is written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from vlmkit.errors import UserError
from vlmkit.registry import LLMFacts, VisionTowerFacts
from vlmkit.scaling.laws import FloatArray

FloatOrArray = TypeVar("FloatOrArray", float, FloatArray)

_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BUDGET = re.compile(r"(?P<number>[+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(?P<prefix>[KMGTPE]?)(?:FLOPS?)?", re.IGNORECASE)


def prefill_flops(N: float, V: FloatOrArray, text_tokens: int) -> FloatOrArray:
    """FLOPs of one prefill of the LLM, C = 2 N (Q + V) (arXiv 2411.03312).

    ``N`` is in billions of parameters, ``V`` visual tokens, ``text_tokens`` is Q. The vision tower, the compressor and
    the generated tokens are not in it.
    """
    return 2e9 * N * (text_tokens + V)


@dataclass(frozen=True)
class Transformer:
    """What the FLOPs of a dense transformer depend on: its matrices and the width of its attention.

    FLOPs are those of torch's ``FlopCounterMode``: two for every multiplication and addition of a matrix product, with
    the whole square of attention (no half for causal masks) and nothing for norms, activations and look-ups.
    """

    matrix_weights: int
    """Weights of the matrices in all layers; every token passes each once."""
    layers: int
    attention_width: int
    """Heads times head size: the columns of all queries of a layer."""

    def forward_flops(self, tokens: FloatOrArray) -> FloatOrArray:
        """One pass over a sequence of ``tokens``, which all attend to all."""
        return 2 * self.matrix_weights * tokens + self._attention(tokens)

    def backward_flops(self, tokens: FloatOrArray, trained_weights: int) -> FloatOrArray:
        """Gradients of the input, through every layer, and of the ``trained_weights`` among the matrix weights.

        A frozen model costs its matrices once more and its attention twice more; a trained one everything twice more.
        """
        return 2 * (self.matrix_weights + trained_weights) * tokens + 2 * self._attention(tokens)

    def _attention(self, tokens: FloatOrArray) -> FloatOrArray:
        """Queries with keys, and their weights with values."""
        return 4 * self.layers * self.attention_width * tokens**2


def decoder(facts: LLMFacts) -> Transformer:
    """The layers of a registry's language model, without its vocabulary."""
    queries, keys = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    layer = facts.hidden_size * (2 * queries + 2 * keys) + 3 * facts.hidden_size * facts.intermediate_size
    return Transformer(facts.num_layers * layer, facts.num_layers, queries)


def vocabulary_flops(facts: LLMFacts, positions: FloatOrArray) -> FloatOrArray:
    """Logits at so many positions."""
    return 2 * facts.vocab_size * facts.hidden_size * positions


def tower_flops(facts: VisionTowerFacts, blocks: int | None = None) -> float:
    """One image through a registry's ViT: patch embedding and its first ``blocks`` (default: all but the last, which is
    what a VLM reads). Raises ValueError for a convnet, whose FLOPs its shape here does not tell."""
    if facts.timm_network is not None:
        raise ValueError(f"{facts.name} is a convnet; its FLOPs can only be counted on the network")
    blocks = facts.layers - 1 if blocks is None else blocks
    patches = (facts.image_size // facts.patch_size) ** 2
    matrices = blocks * (4 * facts.width**2 + 2 * facts.width * int(facts.width * facts.mlp_ratio))
    embedding = 2 * 3 * facts.patch_size**2 * facts.width * patches
    return embedding + Transformer(matrices, blocks, facts.width).forward_flops(patches + 1.0)


def parse_budget(text: str) -> float:
    """FLOPs from ``5e12``, ``5TFLOPs``, ``5 TFLOP`` or ``800GFLOPs`` (prefixes K M G T P E, any case).

    Raises UserError for another unit, and for a budget that is zero, negative or not finite.
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise UserError(f"The budget {text!r} is not a number of FLOPs; write it like 5e12 or 5TFLOPs.")
    flops = float(match["number"]) * _PREFIXES[match["prefix"].upper()]
    if not (math.isfinite(flops) and flops > 0):
        raise UserError(f"The budget {text!r} must be a positive number of FLOPs, such as 5e12 or 5TFLOPs.")
    return flops


def format_flops(flops: float) -> str:
    """FLOPs with three significant digits and a prefix: ``3.19 TFLOPs``."""
    number, prefix = _scaled(flops, _PREFIXES)
    return f"{number} {prefix}FLOPs"


def format_params(count: float) -> str:
    """A number of parameters as model names write it: ``1.8B``, ``35.2K``."""
    return "".join(_scaled(count, {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}))


def _scaled(value: float, prefixes: Mapping[str, float]) -> tuple[str, str]:
    """``value`` in the largest unit it fills, with three significant digits, and that unit's prefix."""
    rounded = float(f"{value:.3g}")
    prefix, size = max(
        ((prefix, size) for prefix, size in prefixes.items() if size <= max(rounded, 1.0)), key=lambda unit: unit[1]
    )
    scaled = rounded / size
    return (f"{scaled:.0f}" if scaled >= 100 else f"{scaled:.3g}"), prefix
