"""The published chat templates of the common families: what is labelled, against what was written out by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlmkit.contracts import IGNORE_INDEX
from vlmkit.data.conversations.chat_template import ChatTemplate
from vlmkit.data.conversations.conversations import ConversationEncoder, stop_tokens
from vlmkit.data.samples import ConversationSample, Turn
from vlmkit.errors import UserError


class Family(NamedTuple):
    """A template as in the ``tokenizer_config.json`` it names, and how it writes two turns: [what is labelled]."""

    template: str
    bos: str
    eos: str
    special: tuple[str, ...]
    written: str


_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
FAMILIES = {
    # Qwen/Qwen1.5-7B-Chat, which says who it is where no system message does
    "chatml": Family(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "",
        "<|im_end|>",
        ("<|im_start|>",),
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\n<image>\nwhat colour is it<|im_end|>\n<|im_start|>assistant\n[dark red<|im_end|>]\n"
        "<|im_start|>user\nhow many<|im_end|>\n<|im_start|>assistant\n[3<|im_end|>]\n",
    ),
    # Qwen/Qwen3-8B in short: only the last answer is preceded by (empty) thoughts
    "qwen3": Family(
        "{%- for message in messages %}{%- if message.role == 'assistant' and loop.last %}"
        "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content + '<|im_end|>\n' }}{%- else %}"
        "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
        "",
        "<|im_end|>",
        ("<|im_start|>",),
        "<|im_start|>user\n<image>\nwhat colour is it<|im_end|>\n<|im_start|>assistant\n[dark red<|im_end|>]\n"
        "<|im_start|>user\nhow many<|im_end|>\n<|im_start|>assistant\n[<think>\n\n</think>\n\n3<|im_end|>]\n",
    ),
    # meta-llama/Llama-2-7b-chat-hf
    "llama-2": Family(
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}" + _ALTERNATE + ""
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
        "{% endfor %}",
        "<s>",
        "</s>",
        (),
        "<s>(INST) <image>\nwhat colour is it (/INST)[ dark red </s>]<s>(INST) how many (/INST)[ 3 </s>]",
    ),
    # meta-llama/Meta-Llama-3-8B-Instruct
    "llama-3": Family(
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim "
        "+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\nwhat colour is it<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[dark red<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nhow many<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[3<|eot_id|>]",
    ),
    # lmsys/vicuna-7b-v1.5 has no template; its prompts are those of FastChat's vicuna_v1.1
    "vicuna": Family(
        "{{ bos_token }}A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. {% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
        "<s>",
        "</s>",
        (),
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives "
        "helpful, detailed, and polite answers to the user's questions. USER: <image>\nwhat colour is it "
        "ASSISTANT:[ dark red</s>]USER: how many ASSISTANT:[ 3</s>]",
    ),
    # google/gemma-2-2b-it
    "gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}" + _ALTERNATE + "{% if (message['role'] == 'assistant') %}"
        "{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
        "<bos>",
        "<eos>",
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\n<image>\nwhat colour is it<end_of_turn>\n"
        "<start_of_turn>model\n[dark red<end_of_turn>]\n<start_of_turn>user\nhow many<end_of_turn>\n"
        "<start_of_turn>model\n[3<end_of_turn>]\n",
    ),
    # microsoft/Phi-3-mini-4k-instruct, which ends a conversation, but no single answer, with its end token
    "phi-3": Family(
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
        "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
        "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        "",
        "<|endoftext|>",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        "<|user|>\n<image>\nwhat colour is it<|end|>\n<|assistant|>\n[dark red<|end|>]\n"
        "<|user|>\nhow many<|end|>\n<|assistant|>\n[3<|end|>]\n<|endoftext|>",
    ),
}
DIALOGUE = (Turn("<image>\nwhat colour is it", "dark red"), Turn("how many", "3"))


def byte_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """One token a byte, and the family's special tokens, which only the added tokens know of."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=family.bos or None, eos_token=family.eos)
    special = [AddedToken(token, special=True, normalized=False) for token in (*family.special, "<image>")]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.chat_template = family.template
    return tokenizer


def marked(tokenizer: PreTrainedTokenizerFast, ids: list[int], labels: list[int]) -> str:
    """The text with brackets around every run of labelled tokens, its own brackets round."""
    text, inside = "", False
    for token, label in zip([*ids, None], [*labels, IGNORE_INDEX], strict=True):
        assert label in (IGNORE_INDEX, token)
        if (label != IGNORE_INDEX) != inside:
            text, inside = text + ("]" if inside else "["), not inside
        if token is not None:
            text += tokenizer.decode([token]).replace("[", "(").replace("]", ")")
    return text


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_labelled(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = byte_tokenizer(family)
    encoder = ConversationEncoder(tokenizer, 1, 1000)
    (sequence,) = encoder.encode(ConversationSample("s", (b"",), DIALOGUE))
    (branch,) = sequence.branches
    ids, labels = sequence.prefix + branch.ids, [IGNORE_INDEX] * len(sequence.prefix) + branch.labels
    assert marked(tokenizer, ids, labels) == family.written
    (alone,) = encoder.encode(ConversationSample("s", (b"",), DIALOGUE[:1]))
    prompt = encoder.prompt(DIALOGUE[0].question)
    whole = alone.prefix + alone.branches[0].ids
    assert whole[: len(prompt.ids)] == prompt.ids, "training and generation must read the same prompt"
    labels = [IGNORE_INDEX] * len(alone.prefix) + alone.branches[0].labels
    assert labels[len(prompt.ids)] != IGNORE_INDEX == labels[len(prompt.ids) - 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_at_the_end_token_and_where_answers_end(name: str) -> None:
    tokenizer = byte_tokenizer(FAMILIES[name])
    ends = {"llama-3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi-3": "<|end|>"}
    expected = {FAMILIES[name].eos, ends.get(name, FAMILIES[name].eos)}
    assert {*tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer))} == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_found_whatever_they_say(name: str) -> None:
    """Words of the template, of the question and of other answers, single letters, markup."""
    family = FAMILIES[name]
    template = ChatTemplate(byte_tokenizer(family))
    answers = ["a", "assistant", "user model ASSISTANT:", "how many", "<b>a</b> {x} [y]", "a"]
    contents = [text for answer in answers for text in ("how many", answer)]
    text, spans = template.render(contents)
    ends = [family.eos, *family.special]
    for answer, (start, stop) in zip(answers, spans, strict=True):
        said = text[start:stop].replace("<think>\n\n</think>\n\n", "")
        assert any(said.strip() in (answer + end, f"{answer} {end}") for end in ends), said
    assert all(before[1] < after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}",
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | upper }}{% endfor %}",
    ],
    ids=["rewrites earlier messages", "rewrites answers"],
)
def test_answers_that_cannot_be_told_are_an_error_naming_the_sample(template: str) -> None:
    tokenizer = byte_tokenizer(FAMILIES["chatml"]._replace(template=template))
    with pytest.raises(UserError, match=r"Sample s-7.*cannot be told from prompts"):
        ConversationEncoder(tokenizer, 1, 500).encode(ConversationSample("s-7", (), DIALOGUE[1:] * 2))


def test_a_prompt_does_not_depend_on_the_day() -> None:
    template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ 'Today Date: ' + date_string }}{% for m in messages %}{{ '\n' + m['content'] + eos_token }}{% endfor %}"
    )
    text, _ = ChatTemplate(byte_tokenizer(FAMILIES["chatml"]._replace(template=template))).render(["how many", "3"])
    assert text.startswith("Today Date: 26 Jul 2024\n")
