"""The vision-language model: loss, merging, generation, and the round trip through the Auto classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    Gemma2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from vlmkit import registry
from vlmkit.config import CompressorConfig
from vlmkit.contracts import IGNORE_INDEX
from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.vision_tower import VisionTower, build_tower
from vlmkit.models.vlm import VLM

TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32))
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
LLMS = {
    "qwen2 tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "gemma2 softcapped": Gemma2Config(**SHAPE, final_logit_softcapping=0.5, query_pre_attn_scalar=16),
}
IMAGE = 5


def make(llm: PreTrainedConfig = LLMS["llama"], compressor: str = "avgpool", tokens: int = 4, seed: int = 0) -> VLM:
    torch.manual_seed(seed)
    model = VLM.join(
        VisionTower(TOWER),
        AutoModelForCausalLM.from_config(llm),
        CompressorConfig(name=compressor, num_visual_tokens=tokens),
        IMAGE,
        seed,
    )
    return model.eval()


def batch(tokens: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, 64, (2, 12), generator=generator)
    ids[:, 2 : 2 + tokens] = IMAGE
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "query_input_ids": torch.randint(6, 64, (2, 3), generator=generator),
        "query_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
    }


@pytest.mark.parametrize("compressor", ["avgpool", "quecc"])
@pytest.mark.parametrize("llm", LLMS)
def test_saved_and_loaded_by_the_auto_class_gives_equal_logits(tmp_path: Path, llm: str, compressor: str) -> None:
    model = make(LLMS[llm], compressor)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin")) and list(tmp_path.glob("*.safetensors"))
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, VLM) and not any(info.values())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch()).logits, model(**batch()).logits)


@pytest.mark.parametrize("llm", LLMS)
def test_loss_at_labels_is_that_of_all_logits(llm: str) -> None:
    model, inputs = make(LLMS[llm]), batch()
    labels = inputs["input_ids"].clone()
    labels[:, :9] = IGNORE_INDEX
    output = model(**inputs, labels=labels)
    logits = model(**inputs).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.loss_sum, expected * 6)
    assert output.targets.tolist() == labels[:, 9:].flatten().tolist()


@pytest.mark.parametrize("compressor", ["avgpool", "quecc"])
def test_cached_features_and_image_index_give_the_logits_of_pixels(compressor: str) -> None:
    model, inputs = make(compressor=compressor), batch()
    pixels = inputs.pop("pixel_values")
    features = model.cacheable_features(pixels.flip(0))
    with torch.no_grad():
        cached = model(**inputs, image_features=features, image_index=torch.tensor([1, 0])).logits
        torch.testing.assert_close(cached, model(**inputs, pixel_values=pixels).logits)
    assert features.shape[1] == (4 if compressor == "avgpool" else 16)


def test_visual_tokens_stand_at_the_image_places_in_order() -> None:
    model, inputs = make(), batch()
    visual = torch.arange(2 * 4 * 32, dtype=torch.float32).view(2, 4, 32)
    merged = model.merge(inputs["input_ids"], visual)
    assert torch.equal(merged[:, 2:6], visual)
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(merged[:, 6:], embedded[:, 6:]) and torch.equal(merged[:, :2], embedded[:, :2])


def test_places_and_images_must_agree() -> None:
    model, inputs = make(), batch()
    with pytest.raises(UserError, match=r"places for 8 .* images give 4"):
        model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})
    with pytest.raises(UserError, match="images give 0"):
        model(input_ids=inputs["input_ids"])


def test_question_vector_is_the_state_of_the_last_real_token() -> None:
    model = make(compressor="quecc")
    inputs = batch()
    got = model.question_vector(inputs["query_input_ids"], inputs["query_attention_mask"])
    for row, length in enumerate((3, 2)):
        alone = model.language_model.model(inputs["query_input_ids"][row : row + 1, :length]).last_hidden_state
        torch.testing.assert_close(got[row], alone[0, -1])
    assert not got.requires_grad


def test_conditioned_model_needs_and_uses_the_question() -> None:
    model, inputs = make(compressor="quecc"), batch()
    with torch.no_grad():
        logits = model(**inputs).logits
        other = model(**{**inputs, "query_input_ids": inputs["query_input_ids"].flip(0)}).logits
    assert not torch.allclose(logits, other)
    del inputs["query_input_ids"]
    with pytest.raises(UserError, match="query_input_ids"):
        model(**inputs)


def test_a_forward_pass_hands_the_language_models_cache_on() -> None:
    model, inputs = make(), batch()
    output = model(**inputs, use_cache=True)
    (cache,) = [value for value in output.values() if isinstance(value, Cache)]
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("compressor", ["avgpool", "quecc"])
def test_batched_generation_equals_greedy_decoding_one_by_one(compressor: str) -> None:
    model, inputs = make(compressor=compressor), batch()
    padded = {name: tensor.clone() for name, tensor in inputs.items()}
    padded["input_ids"] = torch.cat([torch.zeros(2, 3, dtype=torch.long), inputs["input_ids"]], dim=1)
    padded["attention_mask"] = torch.cat([torch.zeros(2, 3, dtype=torch.long), inputs["attention_mask"]], dim=1)
    padded["input_ids"][1, 3:] = inputs["input_ids"][1]
    generated = model.generate(**padded, max_new_tokens=4)
    for row in range(2):
        ids = inputs["input_ids"][row : row + 1]
        one = {n: t[row : row + 1] for n, t in inputs.items() if n not in ("input_ids", "attention_mask")}
        for step in range(4):
            with torch.no_grad():
                chosen = model(input_ids=ids, **one).logits[:, -1].argmax(-1)
            assert generated[row, step] == chosen
            ids = torch.cat([ids, chosen[:, None]], dim=1)


@pytest.mark.parametrize("compressor", ["avgpool", "quecc"])
def test_text_without_images_still_reaches_every_trained_parameter(compressor: str) -> None:
    model = make(compressor=compressor).train()
    ids = torch.randint(6, 64, (2, 5))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    for name, parameter in [*model.projector.named_parameters(), *model.compressor.named_parameters()]:
        assert parameter.grad is not None and not parameter.grad.any(), name
    model.eval()
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, loss)


@pytest.mark.parametrize("compressor", ["tokenpacker", "prune"])
def test_a_compressor_that_reads_what_the_tower_does_not_have_is_refused_at_once(compressor: str) -> None:
    choice = CompressorConfig(name=compressor, num_visual_tokens=1)
    with pytest.raises(UserError, match="choose a ViT"):
        VLM.join(build_tower("timm:test_resnet"), AutoModelForCausalLM.from_config(LLMS["llama"]), choice, IMAGE, 0)


@pytest.mark.parametrize("compressor", sorted(set(registry.COMPRESSORS) - {"avgpool", "quecc"}))
def test_every_compressor_trains_and_gives_the_same_tokens_from_its_cache(compressor: str) -> None:
    tokens = 16 if compressor in ("none", "downsample") else 4
    model, inputs = make(compressor=compressor, tokens=tokens).train(), batch(tokens=0)
    del inputs["input_ids"], inputs["attention_mask"]
    pixels = inputs.pop("pixel_values")
    tokens_of_cache = model.visual_tokens(image_features=model.cacheable_features(pixels), **inputs)
    assert tokens_of_cache is not None and tokens_of_cache.shape == (2, tokens, 32)
    torch.testing.assert_close(tokens_of_cache, model.visual_tokens(pixels, **inputs))
    tokens_of_cache.square().sum().backward()
    assert all(p.grad is not None for part in (model.compressor, model.projector) for p in part.parameters())


def test_fresh_parts_depend_on_the_seed_alone() -> None:
    tower, llm = VisionTower(TOWER), AutoModelForCausalLM.from_config(LLMS["llama"])
    before = torch.get_rng_state()
    compressor = CompressorConfig(name="quecc", num_visual_tokens=4)
    first, same, other = (VLM.join(tower, llm, compressor, IMAGE, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for part in ("compressor", "projector"):
        weights = [torch.cat([p.flatten() for p in getattr(m, part).parameters()]) for m in (first, same, other)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
