"""What exists, as facts: vision towers, language models, compressors, datasets, benchmarks. No behaviour, no torch.

Adding an entry touches this file only. Shapes of the hub models are those of their published config.json files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from vlmkit.errors import UserError

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


_TOWERS = [
    VisionTowerFacts("ViT-mini-8-64", width=128, layers=4, heads=4, patch_size=8, image_size=64),
    VisionTowerFacts("ViT-Ti-16", width=192, layers=12, heads=3, patch_size=16, image_size=224),
    VisionTowerFacts("ViT-Ti-14", width=192, layers=12, heads=3, patch_size=14, image_size=224),
    VisionTowerFacts("ViT-S-16", width=384, layers=12, heads=6, patch_size=16, image_size=224),
    VisionTowerFacts("ViT-S-14", width=384, layers=12, heads=6, patch_size=14, image_size=224),
    VisionTowerFacts("ViT-B-32", width=768, layers=12, heads=12, patch_size=32, image_size=224),
    VisionTowerFacts("ViT-B-16", width=768, layers=12, heads=12, patch_size=16, image_size=224),
    VisionTowerFacts("ViT-B-14", width=768, layers=12, heads=12, patch_size=14, image_size=224),
    VisionTowerFacts("ViT-L-16", width=1024, layers=24, heads=16, patch_size=16, image_size=224),
    VisionTowerFacts("ViT-L-14", width=1024, layers=24, heads=16, patch_size=14, image_size=224),
    VisionTowerFacts("ViT-L-14-336", width=1024, layers=24, heads=16, patch_size=14, image_size=336),
    # CLIP's ResNet-50 (open_clip's RN50) without its attention pooling, which the pooling map brings back.
    VisionTowerFacts(
        "RN50", 2048, 16, 0, patch_size=32, image_size=224, timm_network="resnet50_clip_gap", timm_params=23_527_264
    ),
    VisionTowerFacts(
        "ConvNeXt-Tiny", 768, 18, 0, patch_size=32, image_size=224, timm_network="convnext_tiny", timm_params=27_820_128
    ),
]


def _embedded(name: str, width: int, heads: int) -> LLMFacts:
    inner, layers = width * 11 // 4, 2
    billions = layers * (4 * width**2 + 3 * width * inner) / 1e9
    return LLMFacts(
        name,
        "embedded",
        "qwen2",
        billions,
        width,
        inner,
        layers,
        heads,
        heads,
        width // heads,
        EMBEDDED_VOCAB_SIZE,
        True,
    )


def _published(
    architecture: Literal["qwen2", "llama"],
    name: str,
    billions: float,
    shape: tuple[int, int, int, int, int],
    vocab: int,
    tied: bool,
    hub_id: str,
) -> LLMFacts:
    hidden, inner, layers, heads, kv_heads = shape
    family = name.rsplit("-", 1)[0]
    return LLMFacts(
        name,
        family,
        architecture,
        billions,
        hidden,
        inner,
        layers,
        heads,
        kv_heads,
        hidden // heads,
        vocab,
        tied,
        hub_id,
    )


_qwen, _llama = partial(_published, "qwen2"), partial(_published, "llama")

# Shapes are (hidden, intermediate, layers, heads, key-value heads).
_LLMS = [
    _embedded("nano", width=32, heads=2),
    _embedded("micro", width=64, heads=4),
    _embedded("tiny", width=128, heads=4),
    _embedded("small", width=256, heads=8),
    _qwen("qwen1.5-0.5b", 0.5, (1024, 2816, 24, 16, 16), 151936, True, "Qwen/Qwen1.5-0.5B-Chat"),
    _qwen("qwen1.5-1.8b", 1.8, (2048, 5504, 24, 16, 16), 151936, False, "Qwen/Qwen1.5-1.8B-Chat"),
    _qwen("qwen1.5-4b", 4, (2560, 6912, 40, 20, 20), 151936, False, "Qwen/Qwen1.5-4B-Chat"),
    _qwen("qwen1.5-7b", 7, (4096, 11008, 32, 32, 32), 151936, False, "Qwen/Qwen1.5-7B-Chat"),
    _qwen("qwen1.5-14b", 14, (5120, 13696, 40, 40, 40), 152064, False, "Qwen/Qwen1.5-14B-Chat"),
    _qwen("qwen1.5-32b", 32, (5120, 27392, 64, 40, 8), 152064, False, "Qwen/Qwen1.5-32B-Chat"),
    _qwen("qwen1.5-72b", 72, (8192, 24576, 80, 64, 64), 152064, False, "Qwen/Qwen1.5-72B-Chat"),
    _qwen("qwen2.5-0.5b", 0.5, (896, 4864, 24, 14, 2), 151936, True, "Qwen/Qwen2.5-0.5B-Instruct"),
    _qwen("qwen2.5-1.5b", 1.5, (1536, 8960, 28, 12, 2), 151936, True, "Qwen/Qwen2.5-1.5B-Instruct"),
    _qwen("qwen2.5-3b", 3, (2048, 11008, 36, 16, 2), 151936, True, "Qwen/Qwen2.5-3B-Instruct"),
    _qwen("qwen2.5-7b", 7, (3584, 18944, 28, 28, 4), 152064, False, "Qwen/Qwen2.5-7B-Instruct"),
    _qwen("qwen2.5-14b", 14, (5120, 13824, 48, 40, 8), 152064, False, "Qwen/Qwen2.5-14B-Instruct"),
    _qwen("qwen2.5-32b", 32, (5120, 27648, 64, 40, 8), 152064, False, "Qwen/Qwen2.5-32B-Instruct"),
    _qwen("qwen2.5-72b", 72, (8192, 29568, 80, 64, 8), 152064, False, "Qwen/Qwen2.5-72B-Instruct"),
    _llama("vicuna-7b", 7, (4096, 11008, 32, 32, 32), 32000, False, "lmsys/vicuna-7b-v1.5"),
    _llama("vicuna-13b", 13, (5120, 13824, 40, 40, 40), 32000, False, "lmsys/vicuna-13b-v1.5"),
    _llama("llama3.2-1b", 1, (2048, 8192, 16, 32, 8), 128256, True, "meta-llama/Llama-3.2-1B-Instruct"),
    _llama("llama3.2-3b", 3, (3072, 8192, 28, 24, 8), 128256, True, "meta-llama/Llama-3.2-3B-Instruct"),
    _llama("llama3.1-8b", 8, (4096, 14336, 32, 32, 8), 128256, False, "meta-llama/Llama-3.1-8B-Instruct"),
]

_LLM_ALIASES = {size: f"qwen1.5-{size}" for size in ("0.5b", "1.8b", "4b", "7b", "14b", "32b", "72b")}

_COMPRESSORS = [
    CompressorFacts("none", "every patch is a visual token", False, False, "LLaVA-1.5, arXiv 2310.03744"),
    CompressorFacts("avgpool", "mean over each k x k cell of the patch grid", False, True, "M3, arXiv 2405.17430"),
    CompressorFacts("downsample", "the tower sees a smaller image", False, False, "arXiv 2510.07143"),
    CompressorFacts(
        "pixel_shuffle", "a cell's patches side by side, one linear layer", False, False, "InternVL, arXiv 2404.16821"
    ),
    CompressorFacts(
        "tokenpacker",
        "shrunken patches attend to multi-level features of their cells",
        False,
        True,
        "arXiv 2407.02392",
        PAPER_LEVELS,
    ),
    CompressorFacts(
        "quecc",
        "cell-wise attention to multi-level features, with the question added",
        True,
        False,
        "arXiv 2411.03312, Fig. 5",
        PAPER_LEVELS,
    ),
    CompressorFacts(
        "quecc+",
        "quecc as a residual of avgpool, the question behind a gate",
        True,
        False,
        "variant of this project",
        PAPER_LEVELS,
    ),
    CompressorFacts(
        "resampler", "learned queries over all patches, the first N of them", False, True, "MQT, arXiv 2405.19315"
    ),
    CompressorFacts(
        "prune", "most attended patches, the rest merged; training-free", False, True, "VisionZip, arXiv 2412.04467"
    ),
]

_DATASETS = [
    DatasetFacts(
        "miniworld", "miniworld:train?scenes=16000", ("captions", "conversations", "labels"), "the embedded drawn world"
    ),
    DatasetFacts("wds", "wds:shards/train-*.tar", ("captions",), "WebDataset tar shards: local, s3://, https://, ..."),
    DatasetFacts("csv", "csv:captions.tsv?root=images", ("captions",), "CSV or TSV with paths of images and captions"),
    DatasetFacts("parquet", "parquet:data/train-*.parquet", ("captions",), "Parquet with images or their paths"),
    DatasetFacts("jsonl", "jsonl:train.jsonl?images=DIR", ("captions", "conversations"), "JSON lines beside images"),
    DatasetFacts(
        "hf",
        "hf:OWNER/NAME?split=train",
        ("captions", "conversations"),
        "a Hugging Face data set, from the hub or local",
    ),
    DatasetFacts("llava", "llava:data/train.json", ("conversations",), "LLaVA conversation JSON with an image folder"),
    DatasetFacts("folder", "folder:photos/train", ("labels",), "one folder a class"),
]

_BENCHMARKS = [
    BenchmarkFacts("linear_probe", "tower", (), "accuracy", "logistic regression on frozen pooled features"),
    BenchmarkFacts("linear_probe_mae", "tower", (), "accuracy", "linear layer by LARS, MAE's protocol, many rates"),
    BenchmarkFacts("few_shot", "tower", (), "accuracy", "ridge regression from 1, 5 and 10 images a class"),
    BenchmarkFacts("knn", "tower", (), "accuracy", "20 nearest neighbours by cosine"),
    BenchmarkFacts("zero_shot", "tower", (), "accuracy", "class names in sentences (runs with a text tower)"),
    BenchmarkFacts("finetune", "tower", (), "accuracy", "the whole tower and a linear head, a short training"),
    BenchmarkFacts("caption", "tower", (), "cider", "a small language model on the frozen tower, captions scored"),
    BenchmarkFacts("label_report", "tower", (), "", "the labels of a classification run: counts, coverage, weights"),
    BenchmarkFacts(
        "miniworld", "vlm", ("reasoning", "ocr", "attribute", "count"), "exact_match", "questions on unseen scenes"
    ),
    BenchmarkFacts("llava", "vlm", (), "exact_match", "any LLaVA-format JSON: llava:FILE"),
    BenchmarkFacts("gqa", "vlm", ("reasoning",), "exact_match", "questions made from scene graphs; test-dev balanced"),
    BenchmarkFacts("vqav2", "vlm", (), "vqa_accuracy", "open questions, ten answers each; val"),
    BenchmarkFacts("vizwiz_vqa", "vlm", (), "vqa_accuracy", "what blind people photographed and asked; val"),
    BenchmarkFacts("textvqa", "vlm", ("ocr",), "vqa_accuracy", "questions about text, with and without OCR words; val"),
    BenchmarkFacts("scienceqa_img", "vlm", ("reasoning",), "accuracy", "school science with an image; test"),
    BenchmarkFacts("pope", "vlm", ("reasoning",), "f1", "is it there? random, popular and adversarial objects"),
    BenchmarkFacts("mme", "vlm", ("reasoning",), "total", "yes or no, in pairs: perception and cognition"),
    BenchmarkFacts("mmbench_en_dev", "vlm", ("reasoning",), "circular_accuracy", "choices in every rotation; dev"),
    BenchmarkFacts("seedbench", "vlm", (), "accuracy", "choices about images and videos"),
    BenchmarkFacts("mmmu", "vlm", ("reasoning",), "accuracy", "college exams in 30 subjects; val"),
    BenchmarkFacts("ai2d", "vlm", ("reasoning",), "accuracy", "school diagrams; test"),
    BenchmarkFacts("mathvista", "vlm", ("reasoning",), "accuracy", "mathematics in pictures; testmini, read by rule"),
    BenchmarkFacts("chartqa", "vlm", ("reasoning",), "relaxed_accuracy", "charts, numbers within 5 %; test"),
    BenchmarkFacts("docvqa", "vlm", ("ocr",), "anls", "scanned documents; val"),
    BenchmarkFacts("infovqa", "vlm", ("ocr",), "anls", "infographics; val"),
    BenchmarkFacts("ocrbench", "vlm", ("ocr",), "accuracy", "a thousand questions on text in images"),
    BenchmarkFacts("coco_captions", "vlm", (), "cider", "COCO captions, Karpathy's test split"),
]

_BENCHMARK_SETS = [
    BenchmarkSet(
        "reasoning",
        ("mme", "gqa", "ai2d", "mmbench_en_dev", "mmmu", "scienceqa_img", "mathvista", "pope", "chartqa"),
        "the nine of arXiv 2411.03312",
    ),
    # arXiv 2411.03312 averages OCR-like benchmarks too, but does not list them in full.
    BenchmarkSet("ocr", ("textvqa", "docvqa", "infovqa", "ocrbench"), "a choice of this project"),
]

FactsT = TypeVar("FactsT", VisionTowerFacts, LLMFacts, CompressorFacts, DatasetFacts, BenchmarkFacts, BenchmarkSet)


def _index(entries: Iterable[FactsT]) -> dict[str, FactsT]:
    table: dict[str, FactsT] = {}
    for entry in entries:
        if entry.name.lower() in table:
            raise RuntimeError(f"two registry entries are named {entry.name}")
        table[entry.name.lower()] = entry
    return table


VISION_TOWERS = _index(_TOWERS)
LLMS = _index(_LLMS)
COMPRESSORS = _index(_COMPRESSORS)
DATASETS = _index(_DATASETS)
BENCHMARKS = _index(_BENCHMARKS)
BENCHMARK_SETS = _index(_BENCHMARK_SETS)


def _find(table: Mapping[str, FactsT], kind: str, name: str) -> FactsT:
    try:
        return table[name.lower()]
    except KeyError:
        near = difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.4) or list(table)
        names = ", ".join(table[key].name for key in near)
        raise UserError(
            f"There is no {kind} named {name!r}; did you mean {names}? `vlmkit models` lists all."
        ) from None


def vision_tower(name: str) -> VisionTowerFacts:
    """Facts of a vision tower by name (any case); a UserError names the nearest ones."""
    return _find(VISION_TOWERS, "vision tower", name)


def llm(name: str) -> LLMFacts:
    """Facts of a language model by name or size alias (``7b``: the papers' Qwen1.5 family)."""
    return _find(LLMS, "language model", _LLM_ALIASES.get(name.lower(), name))


def is_llm(name: str) -> bool:
    """Whether ``name`` is a registry name or alias, as opposed to a path or hub id."""
    return name.lower() in LLMS or name.lower() in _LLM_ALIASES


def llm_aliases() -> dict[str, str]:
    """Short names and the registry names they stand for."""
    return dict(_LLM_ALIASES)


def compressor(name: str) -> CompressorFacts:
    """Facts of a compressor by name."""
    return _find(COMPRESSORS, "compressor", name)


def benchmark(name: str) -> BenchmarkFacts:
    """Facts of a benchmark by name."""
    return _find(BENCHMARKS, "benchmark", name)


def benchmark_set(name: str) -> BenchmarkSet:
    """The benchmarks of a family by its name."""
    return _find(BENCHMARK_SETS, "set of benchmarks", name)
