"""The loss of a sample trained at every token count at once."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from vlmkit import registry
from vlmkit.config import CompressorConfig
from vlmkit.contracts import Batch
from vlmkit.data.conversations.conversation_loader import ConversationLoader, TokenCounts
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.conversations.packing import PackingCollate
from vlmkit.data.samples import ConversationSample, Turn
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.tasks.vlm import VLMTask

TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32))
TOKENIZER = AutoTokenizer.from_pretrained(DIRECTORY)
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


class Noise:
    """Images of noise, with a dialogue or two questions about each."""

    fingerprint = "noise"

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> ConversationSample:
        image = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        turns = (Turn("what is it", "noise"), Turn("how many", str(index)))
        return ConversationSample(str(index), (image,), turns, independent=index % 2 == 0)


def batch(counts: TokenCounts, max_length: int = 64) -> Batch:
    load = ConversationLoader(Noise(), ConversationEncoder(TOKENIZER, 16, 64), 32, token_counts=counts)
    return PackingCollate(max_length, TOKENIZER.pad_token_id)([load(index, 0) for index in range(4)])


def test_the_loss_of_all_counts_at_once_is_the_average_of_each() -> None:
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=2048, num_key_value_heads=2, **SHAPE))
    image_token = TOKENIZER.get_vocab()["<image>"]
    vlm = VLM.join(VisionTower(TOWER), llm, CompressorConfig(num_visual_tokens=[1, 4, 16]), image_token, 0)
    task = VLMTask(vlm, TOKENIZER, "finetune").eval()
    together = task(batch(TokenCounts((1, 4, 16), "all")))
    single = [task(batch(TokenCounts((count,)))) for count in (1, 4, 16)]
    losses = torch.stack([output.loss_sum / output.num_targets for output in single])
    assert losses.unique().numel() == 3
    torch.testing.assert_close(together.loss_sum / together.num_targets, losses.mean(), rtol=1e-5, atol=0)

    # Drawn counts, packed tightly or not: each sample as it is at its own count.
    sampled = task(batch(TokenCounts((1, 4, 16), seed=2)))
    torch.testing.assert_close(task(batch(TokenCounts((1, 4, 16), seed=2), 500)).loss_sum, sampled.loss_sum)
