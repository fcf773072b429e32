"""One model for several token counts: equal to the model of each count, in any mixture within a batch."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from vlmkit import registry
from vlmkit.config import CompressorConfig
from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM

TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32))
LLM = Qwen2Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)
IMAGE = 5


def make(tokens: int | list[int], name: str = "avgpool") -> VLM:
    torch.manual_seed(0)
    compressor = CompressorConfig(name=name, num_visual_tokens=tokens)
    return VLM.join(VisionTower(TOWER), AutoModelForCausalLM.from_config(LLM), compressor, IMAGE, 0).eval()


def inputs(*counts: int) -> dict[str, torch.Tensor]:
    """Rows of one image each, that has as many places as the row's count; right-padded."""
    generator = torch.Generator().manual_seed(1)
    length = 8 + max(counts)
    ids = torch.randint(6, 64, (len(counts), length), generator=generator)
    mask = torch.ones_like(ids)
    for row, count in enumerate(counts):
        ids[row, 2 : 2 + count] = IMAGE
        mask[row, 8 + count :] = 0
    pixels = torch.randint(0, 256, (len(counts), 3, 32, 32), dtype=torch.uint8, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


@pytest.mark.parametrize("count", [1, 4, 16])
@torch.no_grad()
def test_at_each_count_it_is_the_fixed_model_with_the_same_weights(count: int) -> None:
    elastic, fixed = make([1, 4, 16]), make(count)
    fixed.load_state_dict(elastic.state_dict())
    given = inputs(count, count)
    expected = fixed(**given).logits
    torch.testing.assert_close(elastic(**given, token_counts=[count] * 2).logits, expected)
    features = elastic.cacheable_features(given.pop("pixel_values"))
    assert features.shape[1] == 16, "the cache must hold what every count needs"
    torch.testing.assert_close(elastic(**given, image_features=features, token_counts=[count] * 2).logits, expected)


@pytest.mark.parametrize("compressor", [facts.name for facts in registry.COMPRESSORS.values() if facts.elastic])
@torch.no_grad()
def test_blocks_of_several_counts_in_one_batch_are_what_each_is_alone(compressor: str) -> None:
    model, counts = make([1, 4, 16], compressor), (4, 1, 16, 4)
    given = inputs(*counts)
    together = model(**given, token_counts=counts).logits
    for row, count in enumerate(counts):
        one = {name: tensor[row : row + 1, : 8 + count] for name, tensor in given.items() if name != "pixel_values"}
        alone = model(**one, pixel_values=given["pixel_values"][row : row + 1], token_counts=[count]).logits
        torch.testing.assert_close(together[row, : 8 + count], alone[0])
    visual = model.visual_tokens(given["pixel_values"], token_counts=counts)
    assert visual is not None and visual.shape == (25, 32)


def test_counts_that_were_not_trained_are_refused_and_the_most_is_the_default() -> None:
    model = make([4, 1])
    assert model.config.token_counts == [1, 4]
    torch.testing.assert_close(model(**inputs(4)).logits, model(**inputs(4), token_counts=[4]).logits)
    with pytest.raises(UserError, match=r"16 visual tokens; .* 1, 4"):
        model(**inputs(16), token_counts=[16])


def test_one_count_in_a_list_is_that_count() -> None:
    assert CompressorConfig(num_visual_tokens=[4]) == CompressorConfig(num_visual_tokens=4)
    assert CompressorConfig(num_visual_tokens=[16, 1, 4, 4]).num_visual_tokens == [1, 4, 16]
