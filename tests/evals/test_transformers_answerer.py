"""Models of transformers as answerers, on tiny random ones in the layout of the hub, against one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from vlmkit.data.samples import Turn
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.errors import UserError
from vlmkit.evals.generation import ImagePrompts
from vlmkit.evals.transformers_answerer import TransformersAnswerer
from vlmkit.models.image_text_to_text import load_image_text_to_text
from vlmkit.models.seeding import seeded

TEMPLATE = (
    "{%% for message in messages %%}{{ message['role'] + ': ' }}{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'image' %%}%s{%% else %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}{{ '\n' }}"
    "{%% endfor %%}"
    "{%% if add_generation_prompt %%}assistant:{%% endif %%}"
)
CPU = torch.device("cpu")
NEW_TOKENS = 4


def text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    # Ten times the usual: small weights would answer everything alike.
    return {
        **shape,
        **special,
        "num_key_value_heads": 2,
        "initializer_range": 0.4,
        "vocab_size": len(tokenizer),
        **more,
    }


def save_idefics3(directory: Path, splitting: bool) -> None:
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    image_processor = Idefics3ImageProcessor(**sizes, do_image_splitting=splitting)
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=4, chat_template=TEMPLATE % "<image>")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **text_config(processor.tokenizer)},
        scale_factor=2,
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with seeded(0):
        Idefics3ForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)


def save_qwen2_vl(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    marks = ["<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    start, end, video = tokenizer.convert_tokens_to_ids(marks)
    pixels = {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 1024}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**pixels),
        tokenizer,
        Qwen2VLVideoProcessor(**pixels),
        chat_template=TEMPLATE % "<|vision_start|><image><|vision_end|>",
    )
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        vision_config={**vision, "spatial_merge_size": 2},
        text_config=text_config(tokenizer, rope_parameters=rope),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    with seeded(0):
        Qwen2VLForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)


SAVED = {
    "idefics3": lambda directory: save_idefics3(directory, splitting=False),
    "idefics3 in tiles": lambda directory: save_idefics3(directory, splitting=True),
    "qwen2_vl": save_qwen2_vl,
}
VISUAL_TOKENS = {"idefics3": 4, "idefics3 in tiles": None, "qwen2_vl": None}


@pytest.fixture(scope="module", params=SAVED)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp("model")
    SAVED[request.param](directory)
    return request.param, directory


def noise(seed: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


WINDOW = [
    ImagePrompts("one", [noise(0, 20, 50)], ["what is it", "how many signs of the same color are there in all"]),
    ImagePrompts("none", [], ["say yes", "name the color of snow"]),
    ImagePrompts("two", [noise(1, 30, 30), noise(2, 60, 20)], ["are <image> and <image> alike", "are they alike"]),
    ImagePrompts("later", [noise(3, 64, 24)], ["and left of it"], [Turn("what is it", "a red sign")]),
    ImagePrompts("large", [noise(4, 64, 64)], ["what is it"]),
]
PARTS: list[list[list[str | int]]] = [
    [[0, "what is it"], [0, "how many signs of the same color are there in all"]],
    [["say yes"], ["name the color of snow"]],
    [["are", 0, "and", 1, "alike"], [0, 1, "are they alike"]],
    [[0, "what is it", "\a", "and left of it"]],
    [[0, "what is it"]],
]
"""The prompts of ``WINDOW`` by hand: numbers are its images; the turn of a dialogue stands between what is asked."""


def rendered(parts: Sequence[str | int], image: str) -> str:
    text = "user: " + "".join(image if isinstance(part, int) else part for part in parts) + "\nassistant:"
    return text.replace("\a", "\nassistant: a red sign\nuser: ")


@torch.no_grad()
def one_by_one(model: PreTrainedModel, processor: ProcessorMixin, image: str) -> list[list[str]]:
    """Every prompt alone, without padding, written out by hand."""
    answers: list[list[str]] = []
    for item, prompts in zip(WINDOW, PARTS, strict=True):
        answers.append([])
        for parts in prompts:
            images = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in item.images]
            inputs = processor(text=[rendered(parts, image)], images=[images] if images else None, return_tensors="pt")
            new = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[
                :, inputs["input_ids"].shape[1] :
            ]
            answers[-1].append(processor.tokenizer.decode(new[0], skip_special_tokens=True).strip())
    return answers


def test_answers_are_those_of_one_prompt_at_a_time(saved: tuple[str, Path]) -> None:
    name, directory = saved
    image = "<|vision_start|><image><|vision_end|>" if name == "qwen2_vl" else "<image>"
    plain = AutoModelForImageTextToText.from_pretrained(directory).eval()
    expected = one_by_one(plain, AutoProcessor.from_pretrained(directory), image)
    assert len({answer for answers in expected for answer in answers}) > 5
    model, processor = load_image_text_to_text(str(directory), CPU)
    for batch_size in (1, 3, 32):
        answerer = TransformersAnswerer(model, processor, batch_size=batch_size, max_new_tokens=NEW_TOKENS)
        assert answerer.answer(WINDOW) == expected
    assert answerer.transform(WINDOW[0].images[0]) is WINDOW[0].images[0]


def test_facts_count_what_is_known(saved: tuple[str, Path]) -> None:
    name, directory = saved
    model, processor = load_image_text_to_text(str(directory), CPU)
    facts = TransformersAnswerer(model, processor, batch_size=1).facts
    assert facts["visual_tokens"] == VISUAL_TOKENS[name] and facts["compressor"] is None
    weights = load_file(directory / "model.safetensors")
    total = sum(tensor.numel() for tensor in weights.values())
    vision = sum(tensor.numel() for key, tensor in weights.items() if "visual" in key or "vision" in key)
    connector = sum(tensor.numel() for key, tensor in weights.items() if "connector" in key)
    tables = sum(tensor.numel() for key, tensor in weights.items() if "embed_tokens" in key or "lm_head" in key)
    assert facts["total_params"] == total
    assert facts["llm_params"] == total - vision - connector
    assert facts["llm_params_non_embedding"] == facts["llm_params"] - tables


def test_decoding_is_greedy_whatever_the_model_asks_for(tmp_path: Path) -> None:
    save_idefics3(tmp_path, splitting=False)
    model, processor = load_image_text_to_text(str(tmp_path), CPU)
    greedy = TransformersAnswerer(model, processor, batch_size=4, max_new_tokens=NEW_TOKENS).answer(WINDOW)
    (tmp_path / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 5.0, "num_beams": 2, "repetition_penalty": 3.0, "eos_token_id": [1]}'
    )
    model, processor = load_image_text_to_text(str(tmp_path), CPU)
    assert TransformersAnswerer(model, processor, batch_size=4, max_new_tokens=NEW_TOKENS).answer(WINDOW) == greedy


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    save_idefics3(tmp_path, splitting=False)
    model, processor = load_image_text_to_text(str(tmp_path), CPU)
    with pytest.raises(UserError, match="Sample odd has 1 images but 2 places"):
        answerer = TransformersAnswerer(model, processor, batch_size=1)
        answerer.answer([ImagePrompts("odd", [noise(0, 9, 9)], ["<image> or <image>"])])
    (tmp_path / "chat_template.jinja").rename(tmp_path / "kept")
    with pytest.raises(UserError, match="no processor with a chat template"):
        load_image_text_to_text(str(tmp_path), CPU)
    (tmp_path / "kept").rename(tmp_path / "chat_template.jinja")
    weights = load_file(tmp_path / "model.safetensors")
    lost = sorted(weights)[0]
    save_file({key: weights[key] for key in weights if key != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lack 1 that its config.json asks for .*{lost}"):
        load_image_text_to_text(str(tmp_path), CPU)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can be had"):
        load_image_text_to_text(str(tmp_path), CPU)
    with pytest.raises(UserError, match="nobody/nothing is no finished run"):
        load_image_text_to_text("nobody/nothing", CPU)
