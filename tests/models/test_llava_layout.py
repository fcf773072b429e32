"""LLaVA-1.5's layout against transformers' own LlavaForConditionalGeneration, out and in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from vlmkit import registry
from vlmkit.config import CompressorConfig
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.errors import UserError
from vlmkit.models.llava_layout import export_llava, llava_config, load_llava
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.seeding import seeded
from vlmkit.models.transformers_tower import TransformersTower
from vlmkit.models.vision_tower import VisionTower, build_tower
from vlmkit.models.vlm import VLM

TOKENIZER = AutoTokenizer.from_pretrained(DIRECTORY)
IMAGE = TOKENIZER.convert_tokens_to_ids("<image>")
PATCHES = 16
FACTS = registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32)
CLIP = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=32,
    patch_size=8,
    projection_dim=16,
)
SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": TOKENIZER.pad_token_id,
    "bos_token_id": None,
    "eos_token_id": TOKENIZER.eos_token_id,
}
QWEN2, LLAMA = Qwen2Config(**SHAPE, tie_word_embeddings=True), LlamaConfig(**SHAPE, tie_word_embeddings=False)
# The template of llava-hf's checkpoints, which takes no plain strings and ends no answer.
PARTS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def own_tower(pooling: str = "avg") -> VisionTower:
    return VisionTower(config_from_facts(FACTS, pooling=pooling))


def transformers_tower() -> VisionTower:
    preprocess = {"size": 32, "mean": list(registry.CLIP_MEAN), "std": list(registry.CLIP_STD)}
    return TransformersTower({"transformers": CLIP.to_dict(), "preprocess_cfg": preprocess})


def make(
    tower: VisionTower, llm: PreTrainedConfig = QWEN2, compressor: str = "none", tokens: int | list[int] = PATCHES
) -> VLM:
    with seeded(3):
        language_model = AutoModelForCausalLM.from_config(llm)
    return VLM.join(tower, language_model, CompressorConfig(name=compressor, num_visual_tokens=tokens), IMAGE, 0).eval()


def conversation() -> list[dict[str, object]]:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 50, 3), dtype=np.uint8)
    image = {"type": "image", "image": Image.fromarray(pixels)}
    return [{"role": "user", "content": [image, {"type": "text", "text": "what color is it"}]}]


@torch.no_grad()
@pytest.mark.parametrize("llm", [QWEN2, LLAMA], ids=["qwen2 tied", "llama"])
@pytest.mark.parametrize("tower", [own_tower, transformers_tower])
def test_stock_llava_gives_equal_logits_and_answers(tower, llm: PreTrainedConfig, tmp_path: Path) -> None:
    with seeded(1):
        vlm = make(tower(), llm)
    assert export_llava(vlm, TOKENIZER, tmp_path) is None
    model, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, LlavaProcessor)
    inputs = processor.apply_chat_template(
        conversation(), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    prompt = ConversationEncoder(TOKENIZER, PATCHES, 256).prompt("what color is it")
    assert inputs["input_ids"].tolist() == [prompt.ids]
    torch.testing.assert_close(model.eval()(**inputs).logits, vlm(**inputs).logits, rtol=1e-5, atol=1e-5)
    answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(answer[:, len(prompt.ids) :], vlm.generate(**inputs, max_new_tokens=6))


def test_what_llava_cannot_express_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"avgpool with 4 of 16 tokens.*--compressor none --tokens 16"):
        export_llava(make(own_tower(), compressor="avgpool", tokens=4), TOKENIZER, tmp_path)
    with pytest.raises(UserError, match="compressor quecc with 16"):
        export_llava(make(own_tower(), compressor="quecc"), TOKENIZER, tmp_path)
    with pytest.raises(UserError, match=r"no place for this tower \(timm_model_name"):
        export_llava(make(build_tower("timm:test_resnet"), tokens=25), TOKENIZER, tmp_path)
    softcapped = Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=0.5, query_pre_attn_scalar=16)
    for llm in (softcapped, PhiConfig(**SHAPE)):
        with pytest.raises(UserError, match=r"no place for the language model \w+ForCausalLM"):
            export_llava(make(own_tower(), llm), TOKENIZER, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_the_stock_processor_would_do_otherwise_is_said(tmp_path: Path) -> None:
    tower = own_tower()
    tower.config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    eos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{eos} $A", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    note = export_llava(make(tower), tokenizer, tmp_path)
    assert note and "add_special_tokens=False" in note and "mean colour" in note


@torch.no_grad()
def test_pooling_at_every_patch_is_llava_too_and_what_is_lost_is_said(tmp_path: Path) -> None:
    with seeded(1):
        vlm = make(own_tower(), compressor="avgpool", tokens=[1, 4, PATCHES])
    vlm.config.prompt_order = "text_first"
    note = export_llava(vlm, TOKENIZER, tmp_path)
    assert note and f"only the full {PATCHES}" in note and "behind the question" in note
    pixels = torch.randn(1, 3, 32, 32)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path).get_image_features(pixels).pooler_output[0]
    torch.testing.assert_close(theirs, vlm.visual_tokens(pixels), rtol=1e-5, atol=1e-5)


def checkpoint(directory: Path, **changes: object) -> LlavaForConditionalGeneration:
    """A LLaVA-1.5 as transformers writes it, with a processor of CLIP's and a template of parts."""
    settings = {"vision_config": CLIP, "text_config": LLAMA, "image_token_index": IMAGE, **changes}
    with seeded(2):
        model = LlavaForConditionalGeneration(LlavaConfig(**settings)).eval()
    model.save_pretrained(directory)
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5, 0.4, 0.3]
    )
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    LlavaProcessor(image_processor, tokenizer, 8, "default", PARTS_TEMPLATE).save_pretrained(directory)
    return model


def rewrite_as_published(directory: Path) -> None:
    """The files as transformers 4 wrote them: other names of weights, preprocessor and rotary settings."""
    weights = load_file(directory / "model.safetensors")
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in weights.items()}
    save_file(renamed, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["text_config"].pop("rope_parameters")
    config["text_config"] |= {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float32"}
    config |= {"ignore_index": -100, "torch_dtype": config.pop("dtype"), "vocab_size": 2048}
    (directory / "config.json").write_text(json.dumps(config))
    processor = json.loads((directory / "processor_config.json").read_text())
    (directory / "preprocessor_config.json").write_text(json.dumps(processor.pop("image_processor")))
    (directory / "processor_config.json").write_text(json.dumps(processor))


@torch.no_grad()
@pytest.mark.parametrize("published", [False, True], ids=["transformers 5", "transformers 4"])
def test_a_llava_checkpoint_keeps_its_logits(published: bool, tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    if published:
        rewrite_as_published(tmp_path)
    vlm, tokenizer = load_llava(str(tmp_path), None, seed=0)
    assert vlm.config.compressor == "none"
    ids = torch.randint(6, 2048, (2, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 2 : 2 + PATCHES] = IMAGE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 32, 32)}
    torch.testing.assert_close(vlm.eval()(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)
    assert vlm.vision_tower.config["preprocess_cfg"]["mean"] == [0.5, 0.4, 0.3]
    vlm.save_pretrained(tmp_path / "again")
    again = VLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(again(**inputs).logits, vlm(**inputs).logits)
    prompt = ConversationEncoder(tokenizer, PATCHES, 256).prompt("is it red")
    assert tokenizer.decode(prompt.ids) == f"USER: {'<image>' * PATCHES}\nis it red ASSISTANT:"


def test_the_published_7b_is_understood_without_its_weights(tmp_path: Path) -> None:
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "vocab_size": 32064}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    }
    config = {"model_type": "llava", "text_config": text, "vision_config": vision, "image_token_index": 32000}
    config |= {"projector_hidden_act": "gelu", "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    config |= {"ignore_index": -100, "pad_token_id": 32001, "torch_dtype": "float16", "vocab_size": 32064}
    (tmp_path / "config.json").write_text(json.dumps(config))
    CLIPImageProcessor(size={"shortest_edge": 336}).save_pretrained(tmp_path)
    with torch.device("meta"):
        vlm = VLM(llava_config(str(tmp_path), CompressorConfig(name="none", num_visual_tokens=576)))
    assert vlm.vision_tower.grid == (24, 24) and vlm.config.image_token_id == 32000
    language_model = sum(parameter.numel() for parameter in vlm.language_model.parameters())
    assert language_model == 6_738_415_616 + 2 * 64 * 4096  # Llama-2 7B, and 64 more tokens


def test_another_compressor_starts_fresh_between_the_checkpoints_parts(tmp_path: Path) -> None:
    model = checkpoint(tmp_path)
    choice = CompressorConfig(name="quecc", num_visual_tokens=4)
    first, same, other = (load_llava(str(tmp_path), choice, seed)[0] for seed in (0, 0, 1))
    projector = model.model.multi_modal_projector
    assert torch.equal(first.projector[0].weight, projector.linear_1.weight)
    assert torch.equal(first.projector[2].bias, projector.linear_2.bias)
    fresh = [torch.cat([p.flatten() for p in vlm.compressor.parameters()]) for vlm in (first, same, other)]
    assert torch.equal(fresh[0], fresh[1]) and not torch.equal(fresh[0], fresh[2])
    elastic = CompressorConfig(name="resampler", num_visual_tokens=[1, 4], query="none")
    joined = [(choice, first), (elastic, load_llava(str(tmp_path), elastic, 0)[0])]
    for asked, vlm in joined:
        planned, config = llava_config(str(tmp_path), asked), vlm.config
        for name in ("vision_config", "compressor", "token_counts", "query", "image_token_id"):
            assert getattr(planned, name) == getattr(config, name)
    assert joined[1][1].config.token_counts == [1, 4]


def test_an_export_comes_back_as_it_was(tmp_path: Path) -> None:
    with seeded(1):
        vlm = make(own_tower("tok"))
    export_llava(vlm, TOKENIZER, tmp_path)
    again, tokenizer = load_llava(str(tmp_path), None, 0)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(again.eval().visual_tokens(pixels), vlm.visual_tokens(pixels), rtol=1e-5, atol=1e-5)
    encoders = [ConversationEncoder(words, PATCHES, 256) for words in (tokenizer, TOKENIZER)]
    assert encoders[0].prompt("is it red").ids == encoders[1].prompt("is it red").ids


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"vision_feature_layer": -1}, "vision_feature_layer is -1"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is full"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is relu"),
        ({"image_token_index": 7}, "not the token 7"),
    ],
)
def test_other_architectures_are_refused(changes: dict[str, object], refusal: str, tmp_path: Path) -> None:
    checkpoint(tmp_path, **changes)
    with pytest.raises(UserError, match=refusal):
        load_llava(str(tmp_path), None, 0)


def test_what_is_no_llava_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be had"):
        load_llava(str(tmp_path / "nothing"), None, 0)
    QWEN2.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no LLaVA-1\.5 checkpoint"):
        load_llava(str(tmp_path), None, 0)
