"""What is known of a thing: the fields that every entry of its kind has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PAPER_LEVELS = (12 / 24, 16 / 24, 22 / 24, 23 / 24)
"""Depths of the levels that TokenPacker and QueCC read: blocks 12, 16, 22 and 23 of CLIP ViT-L's 24."""
CONTEXTUAL_FRACTION = 10 / 64
"""Share of merged tokens in what prune leaves: VisionZip's 10 of 64, beside 54 dominant ones."""
EMBEDDED_VOCAB_SIZE = 2048
"""Embedding rows of the embedded language models; the embedded tokenizer has at most so many entries."""


@dataclass(frozen=True)
class VisionTowerFacts:
    """Shape of a plain ViT or of a convnet, and the statistics its input is normalised with."""

    name: str
    width: int
    layers: int
    """Transformer blocks, or blocks of a convnet's stages."""
    heads: int
    """Attention heads of a block; none in a convnet."""
    patch_size: int
    """Patch side in pixels, or the stride of a convnet's last feature map."""
    image_size: int
    mlp_ratio: float = 4.0
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    timm_network: str | None = None
    """The timm network that is built, if it is no plain ViT."""
    timm_params: int = 0
    """Its weights without a classifier, counted on the built network."""

    @property
    def num_patches(self) -> int:
        """Patches of an image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_params(self) -> int:
        """Weights of the tower: patch embedding, class token, positions, blocks, the norms before and after them."""
        if self.timm_network is not None:
            return self.timm_params
        width, hidden = self.width, int(self.width * self.mlp_ratio)
        embeddings = 3 * self.patch_size**2 * width + width + (self.num_patches + 1) * width
        attention = 4 * width * width + 4 * width
        mlp = 2 * width * hidden + hidden + width
        return embeddings + self.layers * (attention + mlp + 4 * width) + 4 * width


@dataclass(frozen=True)
class LLMFacts:
    """Full shape of a decoder, enough to build it, count it and cost it without its files."""

    name: str
    family: str
    architecture: Literal["qwen2", "llama"]
    nominal_billions: float
    """The size in the model's name, in billions: what the published scaling law is fitted on."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    hub_id: str | None = None
    """Where the weights are published; None for the embedded models, which start from fresh weights."""

    @property
    def attention_bias(self) -> bool:
        """Whether query, key and value projections carry a bias."""
        return self.architecture == "qwen2"

    @property
    def embedded(self) -> bool:
        return self.hub_id is None

    @property
    def num_params_non_embedding(self) -> int:
        """Weights without token embedding and language-model head."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys) + self.attention_bias * (queries + 2 * keys)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp + 2 * self.hidden_size) + self.hidden_size

    @property
    def num_params(self) -> int:
        """All weights; a tied embedding counts once."""
        return self.num_params_non_embedding + self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)


@dataclass(frozen=True)
class CompressorFacts:
    """How a compressor makes visual tokens, in a line, and where it is defined."""

    name: str
    summary: str
    conditioned: bool
    """Whether the visual tokens depend on the question."""
    elastic: bool
    """Whether one model serves several token counts."""
    source: str
    level_fractions: tuple[float, ...] = ()
    """Depths of the blocks whose features are read as levels, as fractions of the tower's number of blocks."""


def level_blocks(fractions: tuple[float, ...], num_layers: int) -> tuple[int, ...]:
    """Indices (from 0) of the blocks at these fractions of the depth, ascending.

    The last block is never among them (its output feeds no patch feature in CLIP-style towers, see LLaVA's use of the
    penultimate block); in a shallow tower, fractions that fall on one block count once.
    """
    after = {min(max(1, round(fraction * num_layers)), max(1, num_layers - 1)) for fraction in fractions}
    return tuple(sorted(count - 1 for count in after))


@dataclass(frozen=True)
class DatasetFacts:
    """A kind of data source: how its specification is written, and what it can serve."""

    name: str
    example: str
    serves: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class BenchmarkFacts:
    """A benchmark or probe of ``vlmkit eval``."""

    name: str
    subject: Literal["tower", "vlm"]
    families: tuple[str, ...]
    metric: str
    summary: str


@dataclass(frozen=True)
class BenchmarkSet:
    """The benchmarks whose mean error is that of a family; a mean over fewer of them is no mean of the family."""

    name: str
    benchmarks: tuple[str, ...]
    source: str
