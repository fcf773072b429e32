"""What a VLM's parts compute and weigh, from the facts of their architecture: exact, and no network is built.

FLOPs are those of torch's ``FlopCounterMode``: two for every multiplication and addition of a matrix product or
convolution, with the whole square of attention (no half for causal masks) and nothing for norms, activations and
look-ups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from vlmkit.errors import UserError
from vlmkit.registry import CONTEXTUAL_FRACTION, PAPER_LEVELS, LLMFacts, VisionTowerFacts, level_blocks
from vlmkit.scaling.laws import FloatArray

FloatOrArray = TypeVar("FloatOrArray", float, FloatArray)


def prefill_flops(N: float, V: FloatOrArray, text_tokens: int) -> FloatOrArray:
    """FLOPs of one prefill of the LLM, C = 2 N (Q + V) (arXiv 2411.03312).

    ``N`` is in billions of parameters, ``V`` visual tokens, ``text_tokens`` is Q. The vision tower, the compressor and
    the generated tokens are not in it.
    """
    return 2e9 * N * (text_tokens + V)


@dataclass(frozen=True)
class Transformer:
    """What the FLOPs of a dense transformer depend on: its matrices and the width of its attention."""

    matrix_weights: int
    """Weights of the matrices in all layers; every token passes each once."""
    layers: int
    attention_width: int
    """Heads times head size: the columns of all queries of a layer."""

    def forward_flops(self, tokens: FloatOrArray, cached: float = 0) -> FloatOrArray:
        """One pass over ``tokens``, which all attend to all and to the ``cached`` tokens before them."""
        return 2 * self.matrix_weights * tokens + self._attention(tokens, cached)

    def backward_flops(self, tokens: FloatOrArray, trained_weights: int) -> FloatOrArray:
        """Gradients of the input, through every layer, and of the ``trained_weights`` among the matrix weights.

        A frozen model costs its matrices once more and its attention twice more; a trained one everything twice more.
        """
        return 2 * (self.matrix_weights + trained_weights) * tokens + 2 * self._attention(tokens)

    def decode_flops(self, steps: int, cached: FloatOrArray) -> FloatOrArray:
        """``steps`` tokens one after another, the first of which attends to itself and ``cached`` tokens."""
        attended = steps * cached + steps * (steps + 1) / 2
        return 2 * self.matrix_weights * steps + 4 * self.layers * self.attention_width * attended

    def _attention(self, tokens: FloatOrArray, cached: float = 0) -> FloatOrArray:
        """Queries with keys, and their weights with values."""
        return 4 * self.layers * self.attention_width * tokens * (tokens + cached)


def decoder(facts: LLMFacts) -> Transformer:
    """The layers of a registry's language model, without its vocabulary."""
    queries, keys = facts.num_heads * facts.head_dim, facts.num_kv_heads * facts.head_dim
    layer = facts.hidden_size * (2 * queries + 2 * keys) + 3 * facts.hidden_size * facts.intermediate_size
    return Transformer(facts.num_layers * layer, facts.num_layers, queries)


def vocabulary_flops(facts: LLMFacts, positions: FloatOrArray) -> FloatOrArray:
    """Logits at so many positions."""
    return 2 * facts.vocab_size * facts.hidden_size * positions


def kv_cache_values(facts: LLMFacts, tokens: FloatOrArray) -> FloatOrArray:
    """Keys and values that a registry's language model keeps of so many tokens, in all layers."""
    return 2 * facts.num_layers * facts.num_kv_heads * facts.head_dim * tokens


def tower_flops(facts: VisionTowerFacts, blocks: int | None = None) -> float:
    """One image through a registry's ViT: patch embedding and its first ``blocks`` (default: all but the last, which is
    what a VLM reads). Raises UserError for a convnet, whose FLOPs its shape here does not tell."""
    if facts.timm_network is not None:
        raise UserError(
            f"{facts.name} is a convnet, whose FLOPs its shape in the registry does not tell; choose a ViT, the cost "
            "model llm, or times measured by `vlmkit bench`."
        )
    blocks = facts.layers - 1 if blocks is None else blocks
    patches = facts.num_patches
    matrices = blocks * (4 * facts.width**2 + 2 * facts.width * int(facts.width * facts.mlp_ratio))
    embedding = 2 * 3 * facts.patch_size**2 * facts.width * patches
    return embedding + Transformer(matrices, blocks, facts.width).forward_flops(patches + 1.0)


@dataclass(frozen=True)
class Part:
    """FLOPs of one pass through some layers, and their weights."""

    flops: float = 0.0
    weights: float = 0.0

    def __add__(self, other: Part) -> Part:
        return Part(self.flops + other.flops, self.weights + other.weights)


def compressor(name: str, tower: VisionTowerFacts, text_width: int | None, visual_tokens: float) -> Part:
    """The registry's compressor ``name`` making ``visual_tokens`` of one image of ``tower``.

    ``text_width`` is the hidden size of the language model where the compressor is given a question vector. Of
    ``downsample`` nothing is counted here: its work is the tower's at a smaller image.
    """
    return _COMPRESSORS[name](tower, text_width, visual_tokens)


def projector(tower: VisionTowerFacts, text_width: int, visual_tokens: float) -> Part:
    """Linear, GELU, Linear from the tower's width to the language model's."""
    return _linear(tower.width, text_width, visual_tokens) + _linear(text_width, text_width, visual_tokens)


def _linear(inputs: float, outputs: float, rows: float, bias: bool = True) -> Part:
    return Part(2 * inputs * outputs * rows, inputs * outputs + bias * outputs)


def _norm(width: int) -> Part:
    return Part(weights=2 * width)


def _normed_mlp(inputs: int, width: int, rows: float) -> Part:
    return _linear(inputs, width, rows) + _linear(width, width, rows) + _norm(width)


def _attention(width: int, queries: float, keys: float, pairs: float) -> Part:
    """Multi-head attention with its four projections, of so many pairs of a query and a key."""
    projections = [_linear(width, width, rows) for rows in (queries, keys, keys, queries)]
    return sum(projections, start=Part(flops=4 * width * pairs))


def _nothing(tower: VisionTowerFacts, text_width: int | None, visual_tokens: float) -> Part:
    return Part()


def _pixel_shuffle(tower: VisionTowerFacts, text_width: int | None, visual_tokens: float) -> Part:
    return _linear(tower.width * tower.num_patches / visual_tokens, tower.width, visual_tokens, bias=False)


def _cell_attention(tower: VisionTowerFacts, visual_tokens: float) -> Part:
    """Every patch is key and value of the one query of its cell; both are made of its levels side by side."""
    patches, width = tower.num_patches, tower.width
    levels = len(level_blocks(PAPER_LEVELS, tower.layers))
    of_levels = _normed_mlp(levels * width, width, patches)
    return of_levels + of_levels + _attention(width, visual_tokens, patches, pairs=patches)


def _tokenpacker(tower: VisionTowerFacts, text_width: int | None, visual_tokens: float) -> Part:
    query = _linear(tower.width, tower.width, visual_tokens, bias=False) + _norm(tower.width)
    return query + _cell_attention(tower, visual_tokens)


def _quecc(tower: VisionTowerFacts, text_width: int | None, visual_tokens: float) -> Part:
    patches, width = tower.num_patches, tower.width
    told = Part() if text_width is None else _linear(text_width, width, 1) + _norm(width)
    depthwise = Part(2 * width * patches, width * patches / visual_tokens + width)
    return told + _normed_mlp(width, width, patches) + depthwise + _cell_attention(tower, visual_tokens)


def _quecc_plus(tower: VisionTowerFacts, text_width: int | None, visual_tokens: float) -> Part:
    gate = Part(weights=0 if text_width is None else tower.width)
    return _quecc(tower, text_width, visual_tokens) + gate


def _resampler(tower: VisionTowerFacts, text_width: int | None, visual_tokens: float) -> Part:
    patches, width = tower.num_patches, tower.width
    learned = Part(weights=visual_tokens * width)
    attention = _attention(width, visual_tokens, patches, pairs=visual_tokens * patches)
    return learned + _norm(width) + _norm(width) + attention


def _prune(tower: VisionTowerFacts, text_width: int | None, visual_tokens: float) -> Part:
    """Queries and keys of the penultimate block once more, who attends to whom, and the merging of what is left."""
    patches, width = tower.num_patches, tower.width
    tokens, head = patches + 1, width // tower.heads
    attention = 4 * tokens * width**2 + 2 * patches * tokens * width
    contextual = round(visual_tokens * CONTEXTUAL_FRACTION)
    joining = patches - visual_tokens
    return Part(attention + 2 * contextual * joining * (head + width))


_COMPRESSORS = {
    "none": _nothing,
    "avgpool": _nothing,
    "downsample": _nothing,
    "pixel_shuffle": _pixel_shuffle,
    "tokenpacker": _tokenpacker,
    "quecc": _quecc,
    "quecc+": _quecc_plus,
    "resampler": _resampler,
    "prune": _prune,
}
