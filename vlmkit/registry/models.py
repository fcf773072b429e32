"""Vision towers, language models and compressors. Shapes of the hub models are those of their published config.json
files."""

from __future__ import annotations

from functools import partial
from typing import Literal

from vlmkit.registry.facts import EMBEDDED_VOCAB_SIZE, PAPER_LEVELS, CompressorFacts, LLMFacts, VisionTowerFacts

TOWERS = [
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
LLMS = [
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

LLM_ALIASES = {size: f"qwen1.5-{size}" for size in ("0.5b", "1.8b", "4b", "7b", "14b", "32b", "72b")}

COMPRESSORS = [
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
