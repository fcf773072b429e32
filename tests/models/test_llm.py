"""Language models by name: embedded, local, of true shape, or refused with the ways on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlmkit import registry
from vlmkit.config import LLMConfig
from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.errors import UserError
from vlmkit.models.llm import EMBEDDED_TOKENIZER, llm_config, load_llm


def save_base_model(directory: Path, vocab_size: int = 12) -> None:
    """A two-layer Llama in hub layout, with a tokenizer that has neither template nor padding nor image token."""
    vocabulary = {"<unk>": 0, "</s>": 1, **{word: i for i, word in enumerate(["a", "b", "c", "d", "e", "f"], 2)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>").save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(directory)


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_embedded_models_have_the_registered_size(name: str) -> None:
    model, tokenizer = load_llm(LLMConfig(name=name), seed=0)
    facts = registry.llm(name)
    assert sum(p.numel() for p in model.parameters()) == facts.num_params
    assert len(tokenizer) <= facts.vocab_size and tokenizer.chat_template
    assert tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) not in (None, tokenizer.unk_token_id)


def test_fresh_weights_are_a_function_of_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (load_llm(LLMConfig(name="nano"), seed)[0].state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", ["7b", "qwen2.5-0.5b", "llama3.2-1b"])
def test_configurations_have_the_true_shape(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llm_config(LLMConfig(name=name)))
    assert sum(p.numel() for p in model.parameters()) == registry.llm(name).num_params


def test_random_weights_come_with_the_embedded_tokenizer_and_the_true_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 2,
    }
    facts = replace(registry.llm("llama3.2-1b"), **small)
    monkeypatch.setitem(registry.LLMS, facts.name, facts)
    model, tokenizer = load_llm(LLMConfig(name=facts.name, weights="random"), seed=0)
    assert model.config.vocab_size == 128256 and len(tokenizer) <= registry.EMBEDDED_VOCAB_SIZE


def test_local_directory_is_completed(tmp_path: Path) -> None:
    save_base_model(tmp_path)
    model, tokenizer = load_llm(LLMConfig(name=str(tmp_path)), seed=0)
    assert model.dtype == torch.float32 and model.get_input_embeddings().weight.shape[0] == 12  # had room
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}], tokenize=False
    )
    assert text == "USER: a b\nASSISTANT: c</s>\n"
    assert tokenizer.pad_token == "</s>" and tokenizer.encode("<image>", add_special_tokens=False) == [8]


def test_embeddings_grow_when_the_image_token_needs_a_row(tmp_path: Path) -> None:
    save_base_model(tmp_path, vocab_size=8)
    model, tokenizer = load_llm(LLMConfig(name=str(tmp_path)), seed=0)
    assert len(tokenizer) == 9 == model.get_input_embeddings().weight.shape[0] == model.config.vocab_size


def test_configuration_of_a_local_directory_needs_no_weights(tmp_path: Path) -> None:
    save_base_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert llm_config(LLMConfig(name=str(tmp_path))).hidden_size == 16


def test_truncated_weights_name_the_ways_on(tmp_path: Path) -> None:
    save_base_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="--llm PATH"):
        load_llm(LLMConfig(name=str(tmp_path)), seed=0)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_directory_names_the_ways_on(tmp_path: Path, damage: str) -> None:
    save_base_model(tmp_path)
    (tmp_path / damage).unlink()
    if damage == "tokenizer.json":
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"--llm PATH.*--llm tiny.*--weights random.*--dry-run"):
        load_llm(LLMConfig(name=str(tmp_path)), seed=0)


@pytest.mark.parametrize("name", ["7b", "someone/no-such-model", "runs/missing"])
def test_weights_that_are_not_here_name_the_ways_on(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be had.*--llm PATH.*--weights random.*--dry-run"):
        load_llm(LLMConfig(name=name), seed=0)


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UserError, match="tiny"):
        load_llm(LLMConfig(name="tinny"), seed=0)


def test_the_embedded_tokenizer_is_where_the_data_room_keeps_it() -> None:
    from vlmkit.data import tokenizer

    assert tokenizer.DIRECTORY.resolve() == EMBEDDED_TOKENIZER


def test_random_weights_are_made_where_and_as_they_will_be_held() -> None:
    model, _ = load_llm(LLMConfig(name="7b", weights="random"), 0, torch.bfloat16, torch.device("meta"))
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "meta")}
    embedded, _ = load_llm(LLMConfig(name="nano"), 0, torch.bfloat16, torch.device("meta"))
    reference, _ = load_llm(LLMConfig(name="nano"), 0)
    assert all(torch.equal(*pair) for pair in zip(embedded.parameters(), reference.parameters(), strict=True))
