"""Every family of causal language models joins, trains a step and generates, from a directory in the hub's layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    SmolLM3Config,
)

from vlmkit import registry
from vlmkit.config import CompressorConfig, LLMConfig, OptimConfig
from vlmkit.contracts import IGNORE_INDEX, IMAGE_TOKEN
from vlmkit.models.llm import load_llm
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.tasks.vlm import VLMTask

TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32))
IDS = {"vocab_size": 16, "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1}
SHAPE = {**IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**SHAPE, "num_key_value_heads": 1}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED),
    "phi": PhiConfig(**SHAPE),
    "phi3": Phi3Config(**GROUPED),
    "gemma2": Gemma2Config(**GROUPED, head_dim=16, query_pre_attn_scalar=16, final_logit_softcapping=0.5),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=16, query_pre_attn_scalar=16),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "smollm3": SmolLM3Config(**GROUPED),
    "granite": GraniteConfig(**GROUPED, logits_scaling=4.0, embedding_multiplier=3.0),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
    "gpt2": GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "opt": OPTConfig(
        **IDS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32
    ),
}


def save(directory: Path, config: PreTrainedConfig) -> str:
    vocabulary = {word: index for index, word in enumerate(["<unk>", "</s>", *"abcdefgh"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>").save_pretrained(directory)
    with seeded(0):
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_joins_trains_and_generates(tmp_path: Path, family: str) -> None:
    llm, tokenizer = load_llm(LLMConfig(name=save(tmp_path, FAMILIES[family])), seed=0)
    assert tokenizer.pad_token and tokenizer.chat_template
    image = tokenizer.get_vocab()[IMAGE_TOKEN]
    with seeded(0):
        tower = VisionTower(TOWER)
    vlm = VLM.join(tower, llm, CompressorConfig(name="quecc", num_visual_tokens=4), image, seed=0)
    task = VLMTask(vlm.eval(), tokenizer, "finetune").eval()
    assert len(task.shard_units()) == 2
    ids = torch.tensor([[2, image, image, image, image, 3, 4, 5], [6, image, image, image, image, 7, 8, 1]])
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        "query_input_ids": torch.tensor([[3, 4], [5, 6]]),
        "query_attention_mask": torch.ones(2, 2, dtype=torch.long),
    }
    labels = ids.masked_fill(torch.arange(8) < 6, IGNORE_INDEX)
    output = vlm(**inputs, labels=labels)
    logits = vlm(**inputs).logits
    expected = F.cross_entropy(logits[:, 5:7].flatten(0, 1), labels[:, 6:].flatten())
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    optimizer = torch.optim.AdamW(task.parameter_groups(OptimConfig(lr=1e-3)))
    assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])
    optimizer.step()
    with torch.no_grad():
        assert vlm(**inputs, labels=labels).loss < output.loss
        chosen = vlm(**inputs).logits[:, -1].argmax(-1)
    generated = vlm.generate(**inputs, attention_mask=torch.ones_like(ids), max_new_tokens=3, pad_token_id=1)
    assert torch.equal(generated[:, 0], chosen)
