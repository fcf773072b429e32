"""A prefix read once: continued by rows of unequal length, it gives what each whole prompt gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config

from vlmkit import registry
from vlmkit.config import CompressorConfig
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.prompt_prefix import PromptPrefix, shared_beginning
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM

TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32))
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
IMAGE, NEW = 5, 3
PREFIX = [7, 9, 11, 9, 30]
RESTS = [[IMAGE] * 4 + [40], [IMAGE] * 4 + [41, 42, 43, 44], [IMAGE] * 4 + [50, 51]]


def language_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    # Sharper than fresh weights, so that what is attended to matters.
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim > 1 else 1)
    return model


def steps(
    vlm: VLM, ids: list[list[int]], pixels: torch.Tensor, mask: list[list[int]], **generation: Any
) -> torch.Tensor:
    """Logits [B, NEW, V] of greedy generation."""
    output = vlm.generate(
        torch.tensor(ids),
        torch.tensor(mask),
        pixels,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        output_logits=True,
        return_dict_in_generate=True,
        **generation,
    )
    return torch.stack(output.logits, dim=1)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("config", [Qwen2Config(**SHAPE), LlamaConfig(**SHAPE)], ids=["qwen2", "llama"])
def test_continued_by_unequal_rows_it_gives_the_logits_of_whole_prompts(config: PreTrainedConfig) -> None:
    llm = language_model(config)
    vlm = VLM.join(VisionTower(TOWER), llm, CompressorConfig(num_visual_tokens=4), IMAGE, 0).eval()
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    alone = [
        steps(vlm, [PREFIX + rest], pixels[row : row + 1], [[1] * len(PREFIX + rest)])[0]
        for row, rest in enumerate(RESTS)
    ]
    prefix = PromptPrefix.read(llm, PREFIX)
    assert prefix is not None
    before = [tensor.clone() for layer in prefix.cache.layers for tensor in (layer.keys, layer.values)]
    pads = [max(map(len, RESTS)) - len(rest) for rest in RESTS]
    ids = [PREFIX + [0] * pad + rest for pad, rest in zip(pads, RESTS, strict=True)]
    mask = [[1] * len(PREFIX) + [0] * pad + [1] * len(rest) for pad, rest in zip(pads, RESTS, strict=True)]
    together = steps(vlm, ids, pixels, mask, **prefix.continued(llm, 3))
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-5)

    # Another image in one row moves that row alone; and the prefix is as it was, however often it is continued.
    other = torch.cat([255 - pixels[:1], pixels[1:]])
    moved = steps(vlm, ids, other, mask, **prefix.continued(llm, 3))
    torch.testing.assert_close(moved[1:], together[1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved[0], together[0], rtol=1e-3)
    after = [tensor for layer in prefix.cache.layers for tensor in (layer.keys, layer.values)]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_the_prefix_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = language_model(Qwen2Config(**SHAPE))
    vlm = VLM.join(VisionTower(TOWER), llm, CompressorConfig(num_visual_tokens=4), IMAGE, 0).eval()
    prefix = PromptPrefix.read(llm, PREFIX)
    assert prefix is not None
    seen: list[int] = []
    attention = llm.model.layers[0].self_attn
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    ids = [PREFIX + RESTS[0]]
    steps(vlm, ids, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [[1] * len(ids[0])], **prefix.continued(llm, 1))
    assert seen == [len(RESTS[0]), 1, 1]


def test_models_whose_state_counts_the_padding_in_are_left_alone() -> None:
    sliding = Gemma2Config(**SHAPE, head_dim=16, sliding_window=4)
    assert PromptPrefix.read(language_model(sliding), PREFIX) is None


def test_the_shared_beginning_ends_before_the_first_image_and_leaves_a_token() -> None:
    assert shared_beginning([[7, 8, IMAGE, 9], [7, 8, IMAGE, 9, 9]], IMAGE) == (7, 8)
    assert shared_beginning([[7, 8, 9], [7, 6, 9], [7, 8, 9]], IMAGE) == (7,)
    assert shared_beginning([[7, 8], [7, 8]], IMAGE) == (7,)
    assert shared_beginning([[IMAGE, 8], [IMAGE, 8]], IMAGE) == ()
