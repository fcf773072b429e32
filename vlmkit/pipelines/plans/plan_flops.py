"""FLOPs of a VLM's training step, by part: the language model's by formula, the visual side's counted on its modules.

They are those of torch's ``FlopCounterMode``: two for a multiplication and an addition of matrix products and
convolutions, see :class:`vlmkit.scaling.flops.Transformer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlmkit.contracts import Source
from vlmkit.data.samples import ConversationSample, evenly_spaced
from vlmkit.models.vlm import VLM
from vlmkit.scaling.flops import Transformer

CHARACTERS_PER_TOKEN = 4
"""What a plan takes for English text, so that it needs no tokenizer."""
_PROBED_SAMPLES = 256


@dataclass(frozen=True)
class MeanSample:
    """The average sample of a source, as a model of some number of visual tokens reads it."""

    images: float
    blocks: float
    """Blocks of visual tokens: one for each image, and for each question where they depend on it."""
    sequences: float
    """Texts that are attended to apart from one another; as many times over as the sample is read."""
    question_tokens: float
    """Tokens of one question."""
    text_tokens: float
    """Tokens of all questions and answers."""
    labels: float
    """Tokens of the answers."""
    num_visual_tokens: float
    """Of a block, on average."""

    @classmethod
    def of(
        cls, source: Source[ConversationSample], num_visual_tokens: float, conditioned: bool, readings: int = 1
    ) -> MeanSample:
        """Estimated from some of the source's samples, of which no image is read.

        ``readings``: how often the language model reads a sample (once for each token count, where it trains with
        all), whose images the tower sees once.
        """
        samples = [_sizes(sample, conditioned) for sample in evenly_spaced(source, _PROBED_SAMPLES)]
        images, blocks, sequences, question, text, labels = map(fmean, zip(*samples, strict=True))
        blocks, sequences, text, labels = (readings * mean for mean in (blocks, sequences, text, labels))
        return cls(images, blocks, sequences, question, text, labels, num_visual_tokens)

    @property
    def tokens(self) -> float:
        """Visual and text tokens."""
        return self.blocks * self.num_visual_tokens + self.text_tokens


def _sizes(sample: ConversationSample, conditioned: bool) -> tuple[float, ...]:
    """Images, blocks, sequences, tokens of a question, of the text and of the answers."""
    apart = len(sample.turns) if sample.independent and conditioned else 1
    questions = sum(len(turn.question) for turn in sample.turns) / CHARACTERS_PER_TOKEN
    answers = sum(len(turn.answer) for turn in sample.turns) / CHARACTERS_PER_TOKEN
    images = len(sample.images)
    return images, images * apart, apart, questions / len(sample.turns), questions + answers, answers


@dataclass(frozen=True)
class PartFlops:
    """Of one part: the pass forward, the gradients, and what gradient checkpointing computes a second time."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recomputed


def flops_per_sample(vlm: VLM, sample: MeanSample, recompute: bool, cached: bool) -> dict[str, PartFlops]:
    """FLOPs of a training step for each sample, by part.

    ``vlm`` lies on the meta device, and what the stage trains requires gradients. ``recompute``: the language model's
    layers are checkpointed; ``cached``: the tower's features are read, not computed. The compressor counts with the
    projector, and the query pass of every question, though a frozen language model reads none twice. Gradients reach
    the visual tokens through every layer of a frozen language model too.
    """
    tower, compressor = visual_flops(vlm)
    layers = language_layers(vlm)
    length = sample.tokens / sample.sequences
    once = sample.sequences * layers.forward_flops(length)
    back = sample.sequences * layers.backward_flops(length, _matrix_weights(vlm, trained=True))
    head = vlm.get_output_embeddings().get_parameter("weight")
    logits = 2 * head.numel() * sample.labels
    reads = vlm.compressor.conditioned and vlm.config.query == "llm"
    query = layers.forward_flops(sample.question_tokens) if reads else 0.0
    return {
        "tower": PartFlops() if cached else _times(sample.images, tower),
        "compressor": _times(sample.blocks, compressor),
        "query pass": PartFlops(sample.blocks * query),
        "llm": PartFlops(once + logits, back + logits * (1 + head.requires_grad), once if recompute else 0.0),
    }


def _times(count: float, flops: PartFlops) -> PartFlops:
    return PartFlops(count * flops.forward, count * flops.backward, count * flops.recomputed)


def layers_of(vlm: VLM) -> tuple[str, nn.ModuleList]:
    """The layers of the language model, and their name in its decoder."""
    decoder = vlm.language_model.get_decoder()
    return next((name, part) for name, part in decoder.named_children() if isinstance(part, nn.ModuleList))


def language_layers(vlm: VLM) -> Transformer:
    """The layers of the language model, whatever its architecture: every matrix of a dense layer meets every token."""
    config = vlm.config.text_config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Transformer(_matrix_weights(vlm), config.num_hidden_layers, heads * head_dim)


def _matrix_weights(vlm: VLM, trained: bool = False) -> int:
    matrices = (p for p in layers_of(vlm)[1].parameters() if p.dim() == 2)
    return sum(matrix.numel() for matrix in matrices if matrix.requires_grad or not trained)


def visual_flops(vlm: VLM) -> tuple[PartFlops, PartFlops]:
    """(tower, for an image; compressor and projector, for a block of visual tokens), of a VLM on the meta device.

    Of several token counts, the mean.
    """
    side = vlm.vision_tower.image_size
    image = torch.empty(1, 3, side, side, dtype=torch.uint8, device="meta")
    seen: list[torch.Tensor] = []
    tower = _count(lambda: seen.append(vlm.encode_images(image)))
    features = seen[0].detach().requires_grad_(seen[0].requires_grad)
    blocks = [_forward_and_backward(partial(visual_tokens, vlm, features, count)) for count in vlm.config.token_counts]
    compressor = PartFlops(fmean(block.forward for block in blocks), fmean(block.backward for block in blocks))
    back = _count(lambda: seen[0].backward(torch.empty_like(features))) if features.requires_grad else 0.0
    return PartFlops(tower, back), compressor


def visual_tokens(vlm: VLM, features: torch.Tensor, count: int) -> torch.Tensor:
    """Compressor and projector alone, for questions that stand as vectors: [B, P, C] -> [B, ``count``, H]."""
    width = vlm.config.text_config.hidden_size
    query = features.new_zeros(len(features), width) if vlm.compressor.conditioned else None
    return vlm.projector(vlm.compressor(vlm.compressor.from_cache(features), query, count))


def _forward_and_backward(compute: Callable[[], torch.Tensor]) -> PartFlops:
    outputs: list[torch.Tensor] = []
    forward = _count(lambda: outputs.append(compute()))
    return PartFlops(forward, _count(lambda: outputs[0].sum().backward()))


def _count(run: Callable[[], object]) -> float:
    # The counter knows attention as matrix products, and the fused kernels of some devices only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def parameters_of(vlm: VLM) -> dict[str, nn.Module]:
    """The parts whose parameters a plan counts, by name."""
    return {
        "tower": vlm.vision_tower,
        "compressor": vlm.compressor,
        "projector": vlm.projector,
        "llm": vlm.language_model,
    }
