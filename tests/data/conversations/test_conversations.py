"""Conversations as tokens: what is labelled, where images stand, what branches share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlmkit.contracts import IGNORE_INDEX
from vlmkit.data.conversations.conversations import Branch, ConversationEncoder
from vlmkit.data.samples import ConversationSample, Turn
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.errors import UserError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{{ bos_token }}A chat. {% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] | trim + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] | trim + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
REWRITING = "{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
DIALOGUE = (Turn("<image>\nwhat colour is it", "dark red"), Turn("and how many {x}?", "three"))


def byte_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of the templates."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<image>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[:3]
    )
    tokenizer.chat_template = template
    return tokenizer


def embedded() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(DIRECTORY)


def sample(turns: tuple[Turn, ...], independent: bool = False, images: int = 1) -> ConversationSample:
    return ConversationSample("s-7", (b"",) * images, turns, independent)


def labelled(tokenizer: PreTrainedTokenizerFast, branch: Branch) -> str:
    assert all(label in (IGNORE_INDEX, token) for label, token in zip(branch.labels, branch.ids, strict=True))
    return tokenizer.decode([label for label in branch.labels if label != IGNORE_INDEX])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "dark red<|im_end|>three<|im_end|>"),
        (VICUNA, " dark red</s> three</s>"),
    ],
)
def test_labels_are_the_answers_and_their_end_tokens(template: str, expected: str) -> None:
    tokenizer = byte_tokenizer(template)
    (sequence,) = ConversationEncoder(tokenizer, 1, 500).encode(sample(DIALOGUE))
    (branch,) = sequence.branches
    text = tokenizer.decode(branch.ids)
    messages = [
        {"role": role, "content": words}
        for turn in DIALOGUE
        for role, words in (("user", turn.question), ("assistant", turn.answer))
    ]
    assert sequence.prefix + branch.ids == tokenizer.apply_chat_template(messages, return_dict=False)
    assert labelled(tokenizer, branch) == expected, text


@pytest.mark.parametrize("question", ["what colour is it", "is <b>this</b> {markup} [x]", "<image> twice? no"])
@pytest.mark.parametrize("answer", ["dark red", "Ünïcode €, 漢字", "a <|tag|> b"])
def test_embedded_template_is_masked_as_transformers_masks_it(question: str, answer: str) -> None:
    """The fast rendering and the offsets against apply_chat_template and its own assistant mask."""
    tokenizer = embedded()
    turns = (Turn(question, answer), Turn("and  then?", " stripped "))
    (sequence,) = ConversationEncoder(tokenizer, 1, 500).encode(sample(turns))
    first = question if "<image>" in question else f"<image>\n{question}"
    contents = [first, answer, "and  then?", "stripped"]
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]
    reference = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    (branch,) = sequence.branches
    assert sequence.prefix + branch.ids == reference["input_ids"]
    mask = [0] * len(sequence.prefix) + [int(label != IGNORE_INDEX) for label in branch.labels]
    assert mask == reference["assistant_masks"]


@pytest.mark.parametrize("make", [embedded, lambda: byte_tokenizer(CHATML)])
def test_branches_of_independent_turns_are_what_each_turn_is_alone(make) -> None:  # type: ignore[no-untyped-def]
    turns = (Turn("read the sign", "r 4"), Turn("how many {red} ones", "3"), Turn("what shape", "star"))
    encoder = ConversationEncoder(make(), 4, 500)
    (together,) = encoder.encode(sample(turns, independent=True))
    assert together.images == [0] and together.prefix[-4:] == [encoder.image_token_id] * 4
    for turn, branch in zip(turns, together.branches, strict=True):
        (alone,) = encoder.encode(sample((turn,)))
        assert together.prefix + branch.ids == alone.prefix + alone.branches[0].ids
        assert branch.labels == alone.branches[0].labels[-len(branch.labels) :]


def test_a_conditioned_compressor_gets_a_sequence_and_a_question_for_every_turn() -> None:
    tokenizer = embedded()
    turns = (Turn("<image>\nread the sign", "r 4"), Turn("<image>\nhow many", "3"))
    sequences = ConversationEncoder(tokenizer, 4, 500, conditioned=True).encode(sample(turns, independent=True))
    assert [tokenizer.decode(s.query) for s in sequences] == ["read the sign", "how many"]
    assert all(s.prefix == [] and s.images == [0] and len(s.branches) == 1 for s in sequences)
    (dialogue,) = ConversationEncoder(tokenizer, 4, 500, conditioned=True).encode(sample(DIALOGUE))
    assert tokenizer.decode(dialogue.query) == "what colour is it"


@pytest.mark.parametrize(
    ("template", "texts", "answers"),
    [
        (
            CHATML,
            [
                "<|im_start|>user\n<image>\nwhat colour is it<|im_end|>\n<|im_start|>assistant\ndark red<|im_end|>\n",
                "<|im_start|>user\n<image>\nwhat colour is it<|im_end|>\n"
                "<|im_start|>assistant\ndark red<|im_end|>\n"
                "<|im_start|>user\nand how many {x}?<|im_end|>\n<|im_start|>assistant\nthree<|im_end|>\n",
            ],
            ["dark red<|im_end|>", "three<|im_end|>"],
        ),
        (
            VICUNA,
            [
                "<s>A chat. USER: <image>\nwhat colour is it ASSISTANT: dark red</s>",
                "<s>A chat. USER: <image>\nwhat colour is it ASSISTANT: dark red</s>"
                "USER: and how many {x}? ASSISTANT: three</s>",
            ],
            [" dark red</s>", " three</s>"],
        ),
    ],
)
def test_each_question_of_a_dialogue_may_have_visual_tokens_of_its_own(
    template: str, texts: list[str], answers: list[str]
) -> None:
    tokenizer = byte_tokenizer(template)
    encoder = ConversationEncoder(tokenizer, 2, 500, conditioned=True, condition_on="each")
    sequences = encoder.encode(sample(DIALOGUE))
    branches = [sequence.branches[0] for sequence in sequences]
    whole = [tokenizer.decode(branch.ids).replace("<image>" * 2, "<image>") for branch in branches]
    assert whole == texts and [labelled(tokenizer, branch) for branch in branches] == answers
    assert [tokenizer.decode(s.query) for s in sequences] == ["what colour is it", "and how many {x}?"]
    assert all((s.prefix, s.images, s.num_visual_tokens) == ([], [0], 2) for s in sequences)
    prompt = encoder.prompt(DIALOGUE[1].question, history=DIALOGUE[:1])
    first = next(i for i, label in enumerate(branches[1].labels) if label != IGNORE_INDEX)
    assert (prompt.ids, prompt.query) == (branches[1].ids[:first], sequences[1].query)


def test_sequences_of_a_dialogue_show_the_images_so_far_and_stop_where_answers_are_cut_off() -> None:
    encoder = ConversationEncoder(embedded(), 2, 40, conditioned=True, condition_on="each")
    turns = (Turn("<image> what", "a"), Turn("and <image> this", "b"), Turn("word " * 50, "c"))
    sequences = encoder.encode(sample(turns, images=2))
    assert [s.images for s in sequences] == [[0], [0, 1]]
    assert [s.branches[0].ids.count(encoder.image_token_id) for s in sequences] == [2, 4]
    with pytest.raises(UserError, match="s-7 trains nothing"):
        encoder.encode(sample((Turn("word " * 50, "c"),), images=0))
    # Where the compressor is blind to the question, nothing is gained by several sequences.
    assert len(ConversationEncoder(embedded(), 2, 500, False, "each").encode(sample(DIALOGUE))) == 1


def test_an_image_without_a_place_stands_before_or_after_the_first_question() -> None:
    tokenizer = byte_tokenizer(CHATML)
    texts = {}
    for order in ("image_first", "text_first"):
        encoder = ConversationEncoder(tokenizer, 1, 500, prompt_order=order)  # type: ignore[arg-type]
        texts[order] = tokenizer.decode(encoder.prompt("who is it", num_images=2).ids)
        placed = tokenizer.decode(encoder.prompt("is <image> red").ids)
        assert placed == "<|im_start|>user\nis <image> red<|im_end|>\n<|im_start|>assistant\n"
    begin, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert texts["image_first"] == f"{begin}<image>\n<image>\nwho is it{end}"
    assert texts["text_first"] == f"{begin}who is it\n<image>\n<image>{end}"


@pytest.mark.parametrize("make", [embedded, lambda: byte_tokenizer(CHATML)])
def test_with_the_text_first_each_independent_turn_is_what_it_is_alone(make) -> None:  # type: ignore[no-untyped-def]
    turns = (Turn("read the sign", "r 4"), Turn("how many", "3"))
    encoder = ConversationEncoder(make(), 4, 500, prompt_order="text_first")
    for turn, sequence in zip(turns, encoder.encode(sample(turns, independent=True)), strict=True):
        (alone,) = encoder.encode(sample((turn,)))
        ids, labels = alone.prefix + alone.branches[0].ids, alone.branches[0].labels
        assert sequence.prefix + sequence.branches[0].ids == ids and sequence.images == [0]
        assert sequence.branches[0].labels[-len(labels) :] == labels


def test_an_encoder_for_another_count_differs_in_the_places_only() -> None:
    encoder = ConversationEncoder(embedded(), 4, 500)
    (few,), (many,) = encoder.encode(sample(DIALOGUE)), encoder.at(9).encode(sample(DIALOGUE))
    assert (few.num_visual_tokens, many.num_visual_tokens, encoder.num_visual_tokens) == (4, 9, 4)
    assert many.prefix.count(encoder.image_token_id) == 9 and few.branches == many.branches


def test_branches_that_do_not_fit_behind_one_prefix_repeat_the_image() -> None:
    encoder = ConversationEncoder(embedded(), 4, 24)
    turns = tuple(Turn("how many red ones", str(i)) for i in range(5))
    sequences = encoder.encode(sample(turns, independent=True))
    assert len(sequences) > 1 and all(len(s) <= 24 and s.images == [0] for s in sequences)
    assert sum(len(s.branches) for s in sequences) == 5


def test_images_stand_where_the_question_has_them() -> None:
    tokenizer = embedded()
    encoder = ConversationEncoder(tokenizer, 3, 100)
    (sequence,) = encoder.encode(sample((Turn("compare <image> with <image>", "same"),), images=2))
    ids = sequence.prefix + sequence.branches[0].ids
    assert ids.count(encoder.image_token_id) == 6 and sequence.images == [0, 1]
    words = tokenizer.decode(ids, skip_special_tokens=True)
    assert words.index("compare") < words.index("with")
    (text_only,) = encoder.encode(sample((Turn("what is two", "2"),), images=0))
    assert encoder.image_token_id not in text_only.prefix + text_only.branches[0].ids
    with pytest.raises(UserError, match=r"s-7 has 1 images but 2 places"):
        encoder.encode(sample((Turn("<image> and <image>", "same"),)))


def test_prompt_is_the_training_text_up_to_the_answer() -> None:
    for tokenizer in (embedded(), byte_tokenizer(CHATML), byte_tokenizer(VICUNA)):
        encoder = ConversationEncoder(tokenizer, 4, 500, conditioned=True)
        prompt = encoder.prompt("read the sign")
        (sequence,) = encoder.encode(sample((Turn("read the sign", "r 4"),)))
        branch = sequence.branches[0]
        first = next(i for i, label in enumerate(branch.labels) if label != IGNORE_INDEX)
        assert prompt.ids == branch.ids[:first] and prompt.query == sequence.query


def test_long_dialogues_are_cut_and_what_trains_nothing_is_refused() -> None:
    encoder = ConversationEncoder(embedded(), 4, 20)
    long = (Turn("what is it", "a " * 50),)
    (sequence,) = encoder.encode(sample(long, images=0))
    assert len(sequence) == 20
    with pytest.raises(UserError, match="s-7 has an empty answer"):
        encoder.encode(sample((Turn("what", "  "),)))
    with pytest.raises(UserError, match="s-7 trains nothing"):
        encoder.encode(sample((Turn("why " * 40, "so"),), images=0))
    with pytest.raises(UserError, match=r"s-7 .* raise max_length"):
        ConversationEncoder(embedded(), 64, 20).encode(sample((Turn("what", "so"),)))


def test_a_template_whose_answers_cannot_be_found_is_refused() -> None:
    with pytest.raises(UserError, match="generation"):
        ConversationEncoder(byte_tokenizer(REWRITING), 1, 100).encode(sample(DIALOGUE))
    refusing = byte_tokenizer("{{ raise_exception('never') }}")
    with pytest.raises(UserError, match="refuses"):
        ConversationEncoder(refusing, 1, 100).encode(sample(DIALOGUE))


def test_real_conversations_are_labelled_with_their_answers(shared_data: Path) -> None:
    import json

    files = sorted((shared_data / "vqa").rglob("*.json"))
    if not files:
        pytest.skip("no conversation files")
    tokenizer = embedded()
    encoder = ConversationEncoder(tokenizer, 1, 2048)
    for record in json.loads(files[0].read_text())[:50]:
        said = [turn["value"] for turn in record["conversations"]]
        turns = tuple(Turn(q, a) for q, a in zip(said[::2], said[1::2], strict=True))
        (sequence,) = encoder.encode(sample(turns))
        assert (
            labelled(tokenizer, sequence.branches[0]).split()
            == " ".join(f"{turn.answer.strip()}{tokenizer.eos_token}" for turn in turns).split()
        )
