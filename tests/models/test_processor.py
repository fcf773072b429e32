"""The processor beside a saved VLM, against the path that training and evaluation take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase

from vlmkit.config import CompressorConfig, LLMConfig
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.images import PadTransform, decode_image
from vlmkit.errors import UserError
from vlmkit.evals.generation import GreedyAnswerer, ImagePrompts
from vlmkit.models.llm import load_llm
from vlmkit.models.processor import VLMProcessor
from vlmkit.models.vision_tower import build_tower
from vlmkit.models.vlm import VLM

QUESTIONS = ["what color is it", "is there a red square in the picture or not"]


def save(compressor: str, counts: int | list[int], directory: Path) -> tuple[Path, VLM, PreTrainedTokenizerBase]:
    llm, tokenizer = load_llm(LLMConfig(name="nano"), seed=0)
    tower, image_token_id = build_tower("ViT-mini-8-64"), tokenizer.convert_tokens_to_ids("<image>")
    vlm = VLM.join(tower, llm, CompressorConfig(name=compressor, num_visual_tokens=counts), image_token_id, 0).eval()
    vlm.save_pretrained(directory)
    VLMProcessor.of(vlm, tokenizer).save_pretrained(directory)
    return directory, vlm, tokenizer


@pytest.fixture(scope="module", params=["avgpool", "quecc"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, VLM, PreTrainedTokenizerBase]:
    return save(request.param, 4, tmp_path_factory.mktemp(request.param))


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def conversation(image: np.ndarray, question: str) -> list[dict[str, object]]:
    content = [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def encoder_of(vlm: VLM, tokenizer: PreTrainedTokenizerBase) -> ConversationEncoder:
    return ConversationEncoder(tokenizer, 4, 256, vlm.compressor.conditioned)


def test_auto_classes_answer_as_evaluation_does(saved: tuple[Path, VLM, PreTrainedTokenizerBase]) -> None:
    directory, vlm, tokenizer = saved
    images = [picture(40, 90), picture(64, 64)]
    transform = PadTransform(vlm.vision_tower.image_size)
    prompts = [
        ImagePrompts(str(index), [transform(decode_image(image))], [question])
        for index, (image, question) in enumerate(zip(images, QUESTIONS, strict=True))
    ]
    answerer = GreedyAnswerer(vlm, encoder_of(vlm, tokenizer), batch_size=2, max_new_tokens=6)
    expected = [answer for (answer,) in answerer.answer(prompts)]

    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    inputs = processor.apply_chat_template(
        [conversation(*pair) for pair in zip(images, QUESTIONS, strict=True)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = model.generate(**inputs, max_new_tokens=6)
    answers = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert answers == expected and any(answers)


def test_ids_pixels_and_questions_are_those_of_training(saved: tuple[Path, VLM, PreTrainedTokenizerBase]) -> None:
    directory, vlm, tokenizer = saved
    processor, image = AutoProcessor.from_pretrained(directory), picture(30, 70)
    assert isinstance(processor, VLMProcessor)
    expected = encoder_of(vlm, tokenizer).prompt(QUESTIONS[0])
    messages = conversation(image, QUESTIONS[0])
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    plain = [{"role": "user", "content": f"<image>\n{QUESTIONS[0]}"}]
    assert text == processor.apply_chat_template(plain, add_generation_prompt=True)
    inputs = processor(
        images=Image.fromarray(image),
        text=text,
        questions=QUESTIONS[0],
        return_mm_token_type_ids=True,
        return_tensors="pt",
    )
    assert inputs["input_ids"].tolist() == [expected.ids]
    places = inputs["input_ids"] == processor.image_token_id
    assert torch.equal(inputs["mm_token_type_ids"], places.long()) and int(places.sum()) == 4
    if vlm.compressor.conditioned:
        assert inputs["query_input_ids"].tolist() == [expected.query]
    pixels = PadTransform(vlm.vision_tower.image_size)(decode_image(image))[None]
    assert torch.equal(inputs["pixel_values"], pixels)


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VLM, PreTrainedTokenizerBase]:
    return save("avgpool", [1, 4, 16], tmp_path_factory.mktemp("elastic"))


def test_a_call_chooses_among_the_counts_that_are_served(elastic: tuple[Path, VLM, PreTrainedTokenizerBase]) -> None:
    directory, vlm, tokenizer = elastic
    processor, image = AutoProcessor.from_pretrained(directory), Image.fromarray(picture(30, 70))
    text = processor.apply_chat_template(conversation(picture(30, 70), QUESTIONS[0]), add_generation_prompt=True)
    most = processor(images=image, text=text, return_tensors="pt")
    assert int((most["input_ids"] == processor.image_token_id).sum()) == 16 and "token_counts" not in most
    for count in (1, 4, 16):
        inputs = processor(images=[image, image], text=[text, text], num_visual_tokens=count, return_tensors="pt")
        assert inputs["input_ids"].tolist() == [ConversationEncoder(tokenizer, count, 256).prompt(QUESTIONS[0]).ids] * 2
        assert inputs["token_counts"] == [count] * 2
        assert processor._get_num_multimodal_tokens([(30, 70)], num_visual_tokens=count)["num_image_tokens"] == [count]
        assert vlm(**inputs.to("cpu")).logits.shape[:2] == inputs["input_ids"].shape
    templated = processor.apply_chat_template(
        conversation(picture(30, 70), QUESTIONS[0]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"num_visual_tokens": 4},
    )
    assert templated["token_counts"] == [4] and vlm.generate(**templated, max_new_tokens=2).shape[0] == 1
    with pytest.raises(UserError, match="trained for 1, 4, 16"):
        processor(images=image, text=text, num_visual_tokens=9)


def test_options_of_the_tokenizer_may_stand_beside_the_others(saved: tuple[Path, VLM, PreTrainedTokenizerBase]) -> None:
    processor = AutoProcessor.from_pretrained(saved[0])
    texts = ["a", "a sign is red"]
    left, right, nested = (
        processor(text=texts, return_tensors="pt", **options)["attention_mask"][0].tolist()
        for options in ({"padding": True}, {"padding_side": "right"}, {"text_kwargs": {"padding_side": "right"}})
    )
    assert left == right[::-1] and right == nested and left[0] == 0


@pytest.mark.parametrize("order", ["image_first", "text_first"])
def test_images_stand_where_their_parts_do(elastic: tuple[Path, VLM, PreTrainedTokenizerBase], order: str) -> None:
    directory, _, tokenizer = elastic
    image, text = {"type": "image"}, {"type": "text", "text": QUESTIONS[0]}
    content = [image, image, text] if order == "image_first" else [text, image, image]
    rendered = AutoProcessor.from_pretrained(directory).apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    expected = ConversationEncoder(tokenizer, 1, 256, prompt_order=order).prompt(QUESTIONS[0], num_images=2)
    assert tokenizer(rendered, add_special_tokens=False).input_ids == expected.ids


def test_what_inference_servers_ask_of_a_processor(saved: tuple[Path, VLM, PreTrainedTokenizerBase]) -> None:
    directory, vlm, _ = saved
    processor, image = AutoProcessor.from_pretrained(directory), Image.fromarray(picture(30, 70))
    counts = processor._get_num_multimodal_tokens(image_sizes=[(30, 70), (640, 480)])
    assert counts["num_image_tokens"] == [4, 4] and counts["num_image_patches"] == [1, 1]
    assert processor.image_token == "<image>" and processor.image_token_ids == [vlm.config.image_token_id]
    inputs = processor(images=[image], text="a <image> b", return_text_replacement_offsets=True)
    ((place,),) = inputs["text_replacement_offsets"]
    assert place["type"] == "image" and place["replacement"] == "<image>" * 4
    query = {"query_input_ids": torch.tensor([[7]]), "query_attention_mask": torch.ones(1, 1, dtype=torch.long)}
    features = vlm.get_image_features(torch.zeros(1, 3, 64, 64), **query).pooler_output
    assert features.shape == (1, 4, vlm.config.text_config.hidden_size)
