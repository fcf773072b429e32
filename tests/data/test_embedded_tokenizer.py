"""The embedded tokenizer: loads offline, one token a word, lossless, exact label masks, reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlmkit.data.miniworld import MiniWorld
from vlmkit.data.miniworld.facts import BADGES, WORDS
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.data.tokenizer.build import build


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(DIRECTORY)


def test_it_is_small_and_its_special_tokens_are_single_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) <= 2048 and (DIRECTORY / "tokenizer.json").stat().st_size < 100_000
    special = ["<|pad|>", "<|im_end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>"]
    ids = [tokenizer.encode(token) for token in special]
    assert all(len(one) == 1 for one in ids) and len({one[0] for one in ids}) == len(special)
    named = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.image_token_id]
    assert named == [ids[0][0], ids[1][0], ids[5][0]]


def test_every_word_of_questions_and_answers_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    words = {word for names in WORDS.values() for word in names} | {word for badge in BADGES for word in badge.split()}
    world = MiniWorld("test", 500)
    for index in range(500):
        for question in world.questions(index):
            words.update(f"{question.question} {question.answer}".split())
    assert len(words) > 250
    assert [word for word in sorted(words) if len(tokenizer.encode(f" {word}")) != 1] == []


@pytest.mark.parametrize(
    "text", ["A plain sentence.", "  two leading spaces\n\tand a tab", "naïve Ünïcödé – 漢字 🎉 عربى", "k9z K9Z", ""]
)
def test_any_text_survives_encoding_and_decoding(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_assistant_mask_covers_answers_and_their_end_mark_only(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "count the objects"},
        {"role": "user", "content": "<image>\nread the sign"},
        {"role": "assistant", "content": "k 9 9 z"},
        {"role": "user", "content": "what color is it"},
        {"role": "assistant", "content": "red"},
    ]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    mask = encoded["assistant_masks"]
    labels = [token for token, trained in zip(encoded["input_ids"], mask, strict=True) if trained]
    assert tokenizer.convert_ids_to_tokens(labels) == ["Ġk", "Ġ9", "Ġ9", "Ġz", "<|im_end|>", "Ġred", "<|im_end|>"]
    # One role token a turn; one image token; no token for the spaces and line ends between the parts.
    words = ["count", "the", "objects", "read", "the", "sign", "what", "color", "is", "it"]
    assert len(mask) == len(messages) + 1 + len(words) + len(labels)


def test_a_prompt_is_the_beginning_of_the_whole_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "user", "content": "<image>\n<image>\nwhich is it"},
        {"role": "assistant", "content": " nile "},
    ]
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert whole[: len(prompt)] == prompt and prompt.count(tokenizer.image_token_id) == 2
    assert tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True).strip() == "nile"


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="Unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_saving_and_loading_again_changes_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab() and again.chat_template == tokenizer.chat_template
    assert again.image_token_id == tokenizer.image_token_id


def test_building_again_gives_the_shipped_files(tmp_path: Path) -> None:
    build(tmp_path)
    shipped, rebuilt = (json.loads((folder / "tokenizer.json").read_text()) for folder in (DIRECTORY, tmp_path))
    assert rebuilt == shipped
    assert (tmp_path / "tokenizer_config.json").read_bytes() == (DIRECTORY / "tokenizer_config.json").read_bytes()
