"""Training steps of a VLM: vlmkit, with its tower's features cached and without, against the plain pipeline.

    python benchmarks/vlm_training.py

The plain pipeline is what one writes with transformers and open_clip alone: the frozen tower runs in every step up to
the block that is read, samples are right-padded to the longest, one a row, visual tokens are put in the places of
``<image>`` in the embeddings, and a stock causal language model computes its loss from all logits. vlmkit packs the
samples into rows, computes logits at labels only, and reads features from a cache (whose file it reads in the step).
All start from equal weights and see equal batches. A step is collating, forward, backward, clipping and fused AdamW;
tokenizing and decoding images are left out of all.

The shape: a 6-layer, 384-wide ViT on 192 px images in patches of 16 (a 12 x 12 grid, which 1, 4, 36 and 144 tokens
tile), a 4-layer, 256-wide language model with a vocabulary of 8192, 32 samples a step, of which 85 % have answers of
1 to 4 tokens. Takes about fifteen minutes on two cores; to see that it works, give --tokens 4 --repeats 1 --batch 8.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from measuring import write_results
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from vlmkit.config import CompressorConfig, OptimConfig, TrainConfig
from vlmkit.contracts import IGNORE_INDEX
from vlmkit.data.conversations.conversations import Branch, EncodedSequence
from vlmkit.data.conversations.packing import ConversationItem, PackingCollate
from vlmkit.data.feature_cache import open_feature_cache
from vlmkit.data.samples import ConversationSample, Turn
from vlmkit.models.features import VisionFeatures
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.questions import last_states
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.timing import interleaved_seconds
from vlmkit.pipelines.vlm_models import Stage
from vlmkit.registry import VisionTowerFacts
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training import distributed
from vlmkit.training.optim import Optimizer, clip_gradients

TOWER = VisionTowerFacts("benchmark", width=384, layers=6, heads=6, patch_size=16, image_size=192)
VOCABULARY, IMAGE, PAD = 8192, 1, 0
PROMPT_TOKENS, SHORT, LONG = 27, (1, 4), (35, 73)
"""Tokens of a question in its template, and the ranges of the answers: 104 positions of padding, 42 of text on average
with four visual tokens."""
OPTIM = OptimConfig(lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, schedule="constant", warmup=0)
PLAIN = "plain"

Row = dict[str, Any]
Step = Callable[[], float]
"""One optimizer step; returns its loss."""


@dataclass(frozen=True)
class Sample:
    """An image, and the ids of a question and its answer."""

    pixels: np.ndarray
    question: list[int]
    answer: list[int]


class Samples:
    """Random samples in memory, as a source for the feature cache."""

    def __init__(self, count: int) -> None:
        rng = random.Random(0)
        noise = np.random.default_rng(0)
        side = TOWER.image_size
        lengths = [rng.randint(*(SHORT if i < 0.85 * count else LONG)) for i in range(count)]
        rng.shuffle(lengths)
        self.rows = [
            Sample(
                noise.integers(0, 256, (side, side, 3), dtype=np.uint8),
                [rng.randrange(2, VOCABULARY) for _ in range(PROMPT_TOKENS)],
                [rng.randrange(2, VOCABULARY) for _ in range(length)],
            )
            for length in lengths
        ]
        self.fingerprint = f"vlm_training benchmark, {count} samples"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> ConversationSample:
        return ConversationSample(str(index), (self.rows[index].pixels,), (Turn("q", "a"),))


def build_model(compressor: str, tokens: int) -> VLM:
    """A fresh model, the same each time."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    with seeded(0):
        tower, llm = VisionTower(config_from_facts(TOWER)).eval(), AutoModelForCausalLM.from_config(config)
    return VLM.join(tower, llm, CompressorConfig(name=compressor, num_visual_tokens=tokens), IMAGE, seed=0)


def vlmkit_step(
    vlm: VLM, stage: Stage, samples: Samples, features: Sequence[torch.Tensor | None] | None, max_length: int
) -> Step:
    """A step as the trainer makes it, from cached ``features`` or from pixels."""
    if vlm.compressor.conditioned:
        vlm.question_encoder = last_states  # without the store of questions seen: every step here has the same ones
    task = VLMTask(vlm, cast(Any, None), stage)
    task.train()
    optimizer = Optimizer(task, OPTIM, total_steps=10**6)
    collate, tokens = PackingCollate(max_length, PAD), vlm.config.num_visual_tokens
    pixels = [torch.from_numpy(row.pixels).permute(2, 0, 1)[None] for row in samples.rows]
    sequences = [_encoded(row, tokens, vlm.compressor.conditioned) for row in samples.rows]
    context = distributed.setup("cpu")
    train = TrainConfig(steps=1)

    def step() -> float:
        images = pixels if features is None else [features[index] for index in range(len(sequences))]
        batch = collate([ConversationItem([row], image) for row, image in zip(sequences, images, strict=True)])
        with distributed.autocast(train, context):
            num_targets = task.begin_step([batch])
            loss = task(batch).loss_sum / num_targets
        loss.backward()
        clip_gradients(optimizer.parameters, OPTIM.clip_norm)
        optimizer.step(0)
        return loss.item()

    return step


def _encoded(row: Sample, tokens: int, conditioned: bool) -> EncodedSequence:
    head = [IMAGE] * tokens + row.question
    labels = [IGNORE_INDEX] * len(head) + row.answer
    query = row.question if conditioned else []
    return EncodedSequence([], [Branch(head + row.answer, labels)], [0], query, tokens)


class PlainVLM(nn.Module):
    """Tower, compressor and projector before a stock causal language model, with the weights of ``vlm``."""

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.visual = copy.deepcopy(vlm.vision_tower.visual)  # open_clip's
        self.llm = copy.deepcopy(vlm.language_model)  # transformers'
        self.projector = copy.deepcopy(vlm.projector)  # torch's
        # There is no other QueCC than vlmkit's own; pooling is torch's.
        self.quecc = copy.deepcopy(vlm.compressor) if vlm.compressor.conditioned else None
        self.tokens, self.encode = vlm.config.num_visual_tokens, vlm.cacheable_features
        preprocess = vlm.vision_tower.config["preprocess_cfg"]
        self.register_buffer("mean", torch.tensor(preprocess["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess["std"]).view(3, 1, 1))

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> Any:
        embeds = self.llm.get_input_embeddings()(ids)
        visual = self.projector(self.compressed(pixels, ids, mask))
        embeds = embeds.masked_scatter((ids == IMAGE)[..., None], visual)
        return self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False).loss

    def compressed(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        levels = self.quecc.levels if self.quecc is not None else ()
        penultimate = TOWER.layers - 2
        blocks = sorted({penultimate, *levels})
        with torch.no_grad():
            outputs = self.visual.forward_intermediates(  # type: ignore[operator]
                (pixels.float() / 255 - self.mean) / self.std,
                indices=blocks,
                stop_early=True,
                intermediates_only=True,
                output_fmt="NLC",
            )["image_intermediates"]
        by_block = dict(zip(blocks, outputs, strict=True))
        patches = by_block[penultimate]
        side, cells = TOWER.image_size // TOWER.patch_size, int(self.tokens**0.5)
        if self.quecc is None:
            grid = patches.transpose(1, 2).unflatten(2, (side, side))
            return F.avg_pool2d(grid, side // cells).flatten(2).transpose(1, 2)
        question = ids[:, self.tokens : self.tokens + PROMPT_TOKENS]
        with torch.no_grad():
            query = self.llm.get_decoder()(input_ids=question, use_cache=False).last_hidden_state[:, -1]
        joined = torch.cat([by_block[block] for block in levels], dim=-1)
        return self.quecc(VisionFeatures((side, side), patches, joined), query, self.tokens)


def plain_step(vlm: VLM, stage: Stage, samples: Samples) -> Step:
    """The same step by stock parts, one sample a row, padded to the longest."""
    model = PlainVLM(vlm).train()
    model.visual.eval().requires_grad_(False)
    if stage == "align":
        model.llm.eval().requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, OPTIM.lr, OPTIM.betas, OPTIM.eps, OPTIM.weight_decay, fused=True)
    images = [torch.from_numpy(row.pixels).permute(2, 0, 1) for row in samples.rows]
    heads = [[IMAGE] * model.tokens + row.question for row in samples.rows]

    def step() -> float:
        rows = [head + row.answer for head, row in zip(heads, samples.rows, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        labels = ids.masked_fill(mask == 0, IGNORE_INDEX)
        labels[:, : len(heads[0])] = IGNORE_INDEX
        loss = model(torch.stack(images), ids, mask, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, OPTIM.clip_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def measure(compressor: str, stage: Stage, tokens: int, samples: Samples, args: argparse.Namespace) -> list[Row]:
    """A line for each candidate of this compressor, stage and number of tokens."""
    vlm = build_model(compressor, tokens)
    features = open_feature_cache(
        samples, vlm.cacheable_features, TOWER.image_size, {"features": vlm.compressor.cached_content}, 1e10
    )
    assert features is not None
    steps = {
        PLAIN: plain_step(vlm, stage, samples),
        "vlmkit": vlmkit_step(copy.deepcopy(vlm), stage, samples, None, args.max_length),
        "vlmkit, cached": vlmkit_step(copy.deepcopy(vlm), stage, samples, features, args.max_length),
    }
    losses = {name: [step() for _ in range(args.compared)] for name, step in steps.items()}
    seconds = interleaved_seconds(steps, args.repeats, torch.device("cpu"))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "compressor": compressor,
            "stage": stage,
            "tokens": tokens,
            "step": name,
            "seconds": seconds[name],
            "samples/s": len(samples) / median[name],
            "speed of plain": median[PLAIN] / median[name],
            "loss": losses[name][0],
            "largest difference of losses": max(abs(a - b) for a, b in zip(losses[name], losses[PLAIN], strict=True)),
        }
        for name in steps
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compressors", nargs="+", default=["avgpool", "quecc"])
    parser.add_argument("--stages", nargs="+", default=["align", "finetune"], choices=["align", "finetune"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 4, 36, 144])
    parser.add_argument("--batch", type=int, default=32, help="samples of a step")
    parser.add_argument("--max-length", type=int, default=320, help="tokens of a packed row")
    parser.add_argument("--compared", type=int, default=3, help="steps from equal weights whose losses are compared")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = Samples(args.batch)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VLMKIT_CACHE"] = cache
        rows = [
            row
            for compressor in args.compressors
            for stage in args.stages
            for tokens in args.tokens
            for row in measure(compressor, stage, tokens, samples, args)
        ]
    files = write_results("vlm_training", torch.device("cpu"), vars(args), rows)
    print(files[-1].read_text() + "\nwritten: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
