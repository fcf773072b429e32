"""Captioning: a small prefix language model learns to describe images from the features of a frozen tower.

The idea of ClipCap (arXiv 2111.09734): visual features become a prefix of the text. Here the model is a VLM with an
average-pooling compressor and an embedded language model, which starts from fresh weights and is trained with the
projector; its captions are greedy, and scored by CIDEr-D. Its figures compare towers with each other, not with those of
a pretrained language model.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import torch

from vlmkit.config import CompressorConfig, LLMConfig, OptimConfig, TrainConfig
from vlmkit.contracts import IMAGE_TOKEN, Source
from vlmkit.data.conversations.conversation_loader import ConversationLoader
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.conversations.packing import PackingCollate
from vlmkit.data.feature_cache import open_feature_cache
from vlmkit.data.loader import Stream
from vlmkit.data.samples import BadSample, CaptionSample, ConversationSample, Turn
from vlmkit.evals.benchmarks import Benchmark, Question
from vlmkit.evals.generation import GreedyAnswerer
from vlmkit.evals.progress import shown
from vlmkit.evals.runner import BenchmarkOutcome, run_benchmark
from vlmkit.evals.scoring import coco_captions
from vlmkit.evals.short_training import train_briefly
from vlmkit.models.compressors.base import legal_counts
from vlmkit.models.llm import load_llm
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training import distributed
from vlmkit.training.metrics import Progress

LLM = "tiny"
MAX_VISUAL_TOKENS = 49
"""The prefix is the largest grid of cells up to this many."""
MAX_LENGTH, MAX_NEW_TOKENS = 512, 64
"""Tokens of a packed row in training, and of a caption that is generated."""
CACHE_LIMIT = 20e9
"""Bytes of features on disk; without room for them the tower runs in every step."""
BUDGET = TrainConfig(
    steps=500,
    global_batch_size=16,
    optim=OptimConfig(lr=1.5e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0),
)
"""As ``train-vlm`` trains an embedded language model, half as long; the same for a pretrained and a random tower."""

PROMPT = "describe the image"


class CaptionConversations:
    """A caption source as conversations: one request, each caption of an image an answer that sees no other.

    Raises BadSample where an image has no caption with words.
    """

    def __init__(self, source: Source[CaptionSample]) -> None:
        self._source = source
        self.fingerprint = sha256(f"captions of {source.fingerprint}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> ConversationSample:
        sample = self._source[index]
        turns = tuple(Turn(PROMPT, caption) for caption in sample.captions if caption.strip())
        if not turns:
            raise BadSample(f"sample {index} has no caption")
        return ConversationSample(f"caption-{index}", (sample.image,), turns, independent=True)


def caption(
    tower: VisionTower,
    train: Source[CaptionSample],
    test: Source[CaptionSample],
    *,
    budget: TrainConfig = BUDGET,
    batch_size: int = 128,
    records_path: Path | None = None,
    progress: Progress | None = None,
    description: str = "caption",
) -> BenchmarkOutcome:
    """Train a captioner on ``tower`` (frozen) and score its captions of ``test``: a record with its score an image.

    ``batch_size`` is that of the test images; ``records_path`` gets the records as JSON lines.
    Raises UserError where too many samples cannot be read, and Interrupted when a signal stopped the training.
    """
    llm, tokenizer = load_llm(LLMConfig(name=LLM), seed=0)
    num_tokens = max(count for count in legal_counts(tower.grid) if count <= MAX_VISUAL_TOKENS)
    compressor = CompressorConfig(name="avgpool", num_visual_tokens=num_tokens)
    vlm = VLM.join(tower, llm, compressor, tokenizer.get_vocab()[IMAGE_TOKEN], seed=0)
    device = distributed.setup(budget.device).device
    torch.nn.Module.to(vlm, device)
    task = VLMTask(vlm, tokenizer, "finetune")  # puts the tower into evaluation mode, before its features are read
    encoder = ConversationEncoder(tokenizer, num_tokens, MAX_LENGTH)
    conversations = CaptionConversations(train)
    with shown(progress, len(conversations), f"{description}, features") as report:
        features = open_feature_cache(
            conversations,
            lambda pixels: vlm.cacheable_features(pixels.to(device)),
            tower.image_size,
            {"tower": tower.fingerprint(), "features": vlm.compressor.cached_content},
            CACHE_LIMIT,
            progress=report,
        )
    stream = Stream(
        ConversationLoader(conversations, encoder, tower.image_size, features),
        conversations,
        PackingCollate(MAX_LENGTH, tokenizer.pad_token_id),
        global_batch_size=budget.global_batch_size,
        micro_batch_size=budget.micro_batch_size,
        num_workers=budget.num_workers,
    )
    train_briefly(task, stream, budget, len(train), progress=progress, description=description)
    benchmark = caption_benchmark(CaptionConversations(test))
    with shown(progress, len(test), f"{description}, test") as report:
        return run_benchmark(
            GreedyAnswerer(vlm, encoder, batch_size=batch_size, max_new_tokens=MAX_NEW_TOKENS),
            benchmark,
            {"llm": LLM},
            records_path=records_path,
            on_progress=report,
        )


def caption_benchmark(conversations: CaptionConversations) -> Benchmark:
    """One request an image, all its captions as references, scored by CIDEr-D over these images."""
    return Benchmark(
        name="caption",
        samples=conversations,
        questions=lambda sample: [Question(sample.id, PROMPT, _references(sample), "all")],
        rule=coco_captions,
    )


def _references(sample: ConversationSample) -> tuple[str, ...]:
    return tuple(turn.answer for turn in sample.turns)
