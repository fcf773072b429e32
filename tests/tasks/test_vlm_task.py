"""VLMTask: what a stage trains, the loss under micro-batching and caching, and the exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, Qwen2Config

from vlmkit import registry
from vlmkit.config import CompressorConfig, LoRAConfig, OptimConfig, TrainConfig
from vlmkit.contracts import Batch
from vlmkit.data.conversations.conversation_loader import ConversationLoader
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.conversations.packing import ConversationItem, PackingCollate
from vlmkit.data.feature_cache import open_feature_cache
from vlmkit.data.samples import ConversationSample, Turn
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.errors import UserError
from vlmkit.models.adapters import adapter_parameters, add_adapters
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training import distributed

TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32))
TOKENIZER = AutoTokenizer.from_pretrained(DIRECTORY)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Swatches:
    """Plain coloured images, and two independent questions about each."""

    fingerprint = "swatches"

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> ConversationSample:
        name = list(COLOURS)[index % 3]
        image = np.full((32, 32, 3), COLOURS[name], np.uint8)
        turns = (Turn("what color is it", name), Turn("is it red", "yes" if name == "red" else "no"))
        return ConversationSample(str(index), (image,), turns, independent=True)


def make(compressor: str = "avgpool", stage: str = "finetune", lora: bool = False, **options: bool) -> VLMTask:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    image_token_id = TOKENIZER.convert_tokens_to_ids("<image>")
    llm, choice = AutoModelForCausalLM.from_config(config), CompressorConfig(name=compressor, num_visual_tokens=4)
    model = VLM.join(VisionTower(TOWER), llm, choice, image_token_id, 0)
    if lora:
        pytest.importorskip("peft")
        add_adapters(model.language_model, LoRAConfig(r=4, alpha=8, dropout=0.0), seed=0)
    return VLMTask(model, TOKENIZER, stage, **options)  # type: ignore[arg-type]


def batch(task: VLMTask, indices: Sequence[int], cached: bool = False, max_length: int = 48) -> Batch:
    encoder = ConversationEncoder(TOKENIZER, 4, max_length, task.model.compressor.conditioned)
    cache = open_feature_cache(Swatches(), task.model.cacheable_features, 32, {}, 1e9) if cached else None
    load = ConversationLoader(Swatches(), encoder, 32, cache)
    return PackingCollate(max_length, TOKENIZER.pad_token_id)([load(index, 0) for index in indices])


@pytest.mark.parametrize(("stage", "trained"), [("align", {"projector"}), ("finetune", {"projector", "llm"})])
def test_a_stage_trains_its_parts_and_freezes_the_rest(stage: str, trained: set[str]) -> None:
    task = make(stage=stage).train()
    groups = task.parameter_groups(OptimConfig(lr=1.0, weight_decay=0.5, lr_multipliers={"projector": 0.1}))
    assert {group["name"].split()[0] for group in groups} == trained
    for group in groups:
        assert group["lr"] == (0.1 if group["name"].startswith("projector") else 1.0)
        assert all(group["weight_decay"] == (0.5 if p.ndim >= 2 else 0.0) for p in group["params"])
    given = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in given}) == len(given)
    assert {id(p) for p in given} == {id(p) for p in task.parameters() if p.requires_grad}
    assert task.model.projector.training and not task.model.vision_tower.training
    assert task.model.language_model.training == (stage == "finetune")
    output = task(batch(task, range(6)))
    output.loss_sum.backward()
    assert all(p.grad is not None and p.grad.any() for p in given)
    assert all(p.grad is None for p in task.model.vision_tower.parameters())


def test_adapters_train_in_place_of_the_language_model() -> None:
    task = make(lora=True).train()
    groups = task.parameter_groups(OptimConfig(lr=2.0, lr_multipliers={"projector": 0.1}))
    rates = {group["name"].split()[0]: group["lr"] for group in groups}
    assert rates == {"projector": 0.2, "llm": 2.0}
    adapters = adapter_parameters(task.model.language_model)
    assert {id(p) for p in adapters} == {id(p) for g in groups if g["name"] == "llm" for p in g["params"]}
    task(batch(task, range(6))).loss_sum.backward()
    assert all(p.grad is not None for p in adapters)
    assert all(p.grad is None for p in task.parameters() if not p.requires_grad)


@pytest.mark.parametrize("compressor", ["avgpool", "quecc"])
def test_a_tower_trains_as_far_as_the_features_reach(compressor: str) -> None:
    task = make(compressor, train_tower=True).train()
    tower = task.model.vision_tower
    assert tower.training and task.model.language_model.training
    groups = task.parameter_groups(OptimConfig(lr=1.0, lr_multipliers={"tower": 0.01, "projector": 0.1}))
    rates = {group["name"].split()[0]: group["lr"] for group in groups}
    assert (rates["tower"], rates["projector"], rates["llm"]) == (0.01, 0.1, 1.0)
    given = {id(p) for group in groups for p in group["params"]}
    assert {id(p) for p in tower.blocks()[1].parameters()} <= given  # the penultimate block
    assert not {id(p) for p in tower.blocks()[2].parameters()} & given
    task(batch(task, range(6))).loss_sum.backward()
    assert all(p.grad is not None and p.grad.any() for group in groups for p in group["params"])
    assert task.shard_units()[2:] == tower.blocks()[:2]
    task.zero_grad()
    text = torch.arange(6, 16).expand(2, 10)
    task.model(input_ids=text, labels=text).loss.backward()  # a batch without images has a gradient for all as well
    assert all(p.grad is not None for group in groups for p in group["params"])
    assert not make(stage="align", train_tower=True).train().model.vision_tower.training


@pytest.mark.parametrize("stage", ["align", "finetune"])
@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_no_gradient_and_recomputes(stage: str, lora: bool) -> None:
    gradients, calls = [], []
    for on in (False, True):
        task = make(stage=stage, lora=lora)
        if on:
            options = {"use_reentrant": False}
            task.model.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        task.train()
        count: list[int] = []
        task.shard_units()[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))  # type: ignore[union-attr]
        task(batch(task, range(6))).loss_sum.backward()
        gradients.append([p.grad for p in task.parameters() if p.requires_grad])
        calls.append(len(count))
    assert calls == [1, 2]
    for once, twice in zip(*gradients, strict=True):
        torch.testing.assert_close(once, twice)


@pytest.mark.parametrize(("stage", "lora"), [("align", False), ("finetune", False), ("finetune", True)])
def test_frozen_matrices_are_held_in_bf16_and_the_loss_is_that_of_autocast(stage: str, lora: bool) -> None:
    task = make("quecc", stage, lora)
    given = batch(task, range(6))
    exact = task(given).loss_sum.detach()
    with torch.autocast("cpu", torch.bfloat16):
        from_float32 = task(given).loss_sum.detach()
    context = distributed.setup("cpu")
    distributed.place(task, TrainConfig(steps=1, precision="bf16"), context)
    for name, parameter in task.named_parameters():
        half = not parameter.requires_grad and parameter.ndim > 1
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
    with torch.autocast("cpu", torch.bfloat16):
        held = task(given).loss_sum
    held.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in task.parameters() if p.requires_grad)
    torch.testing.assert_close(held.detach().float(), exact, rtol=1e-2, atol=0)
    torch.testing.assert_close(held.detach().float(), from_float32.float(), rtol=1e-2, atol=0)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(UserError, match="compressor, projector, llm"):
        make().parameter_groups(OptimConfig(lr_multipliers={"proj": 0.1}))


@pytest.mark.parametrize("compressor", ["avgpool", "quecc"])
def test_loss_is_the_same_packed_cached_and_in_parts(compressor: str) -> None:
    task = make(compressor)
    whole = batch(task, range(6))
    answers = [turn.answer for index in range(6) for turn in Swatches()[index].turns]
    answer_tokens = sum(len(TOKENIZER.encode(f" {answer}<|im_end|>", add_special_tokens=False)) for answer in answers)
    assert task.begin_step([whole]) == whole["num_targets"] == answer_tokens
    expected = task(whole)
    parts = [batch(task, [index], max_length=24) for index in range(6)]
    assert task.begin_step(parts) == expected.num_targets
    variants = {
        "cached": task(batch(task, range(6), cached=True)).loss_sum,
        "parts": torch.stack([task(part).loss_sum for part in parts]).sum(),
        "one row": task(batch(task, range(6), max_length=500)).loss_sum,
    }
    for name, loss_sum in variants.items():
        rounding = 1e-3 if name == "cached" else 1e-5  # the cache holds half-precision numbers
        torch.testing.assert_close(loss_sum, expected.loss_sum, rtol=rounding, atol=0, msg=name)


def mixed_items() -> list[ConversationItem]:
    """Text alone, one image, two images, and a question each of its own about one."""
    generator = torch.Generator().manual_seed(0)
    encoder = ConversationEncoder(TOKENIZER, 4, 48)
    items = []
    for number, (images, answer) in enumerate([(0, "two"), (1, "red"), (2, "both of them"), (1, "no"), (0, "yes")] * 2):
        turns = (Turn("what color is it", answer), Turn("is it red", "no"))
        sample = ConversationSample(str(number), (b"",) * images, turns, independent=number % 2 == 1)
        pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        items.append(ConversationItem(encoder.encode(sample), pixels if images else None))
    return items


@pytest.mark.parametrize("max_tokens", [48, 100])
def test_a_token_budget_changes_neither_loss_nor_gradients(max_tokens: int) -> None:
    task, collate = make(), PackingCollate(48, TOKENIZER.pad_token_id)
    whole, parts = [collate(mixed_items())], collate.micro_batches(mixed_items(), max_tokens)
    assert len(parts) > 2 and all(part["input_ids"].numel() <= max_tokens for part in parts)
    found = []
    for batches in (whole, parts):
        task.zero_grad()
        count = task.begin_step(batches)
        losses = [task(given).loss_sum / count for given in batches]
        torch.stack(losses).sum().backward()
        grads = torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None])
        found.append((torch.stack(losses).sum().detach(), grads))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=0)
    assert (found[1][1] - found[0][1]).norm() < 1e-6 * found[0][1].norm()


@pytest.mark.parametrize("num_turns", [1, 3])
def test_the_answer_never_reaches_the_visual_tokens(num_turns: int) -> None:
    """Other answers, of other lengths, leave them as they are to the last bit; another first question does not."""
    task = make("quecc").eval()
    encoder = ConversationEncoder(TOKENIZER, 4, 200, task.model.compressor.conditioned)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)

    def tokens_of(first: str, answer: str) -> torch.Tensor:
        questions = [first, "is it red", "how many are there"][:num_turns]
        sample = ConversationSample("s", (b"",), tuple(Turn(question, answer) for question in questions))
        given = PackingCollate(200, TOKENIZER.pad_token_id)([ConversationItem(encoder.encode(sample), image)])
        names = ("pixel_values", "image_index", "query_input_ids", "query_attention_mask")
        visual = task.model.visual_tokens(**{name: given[name] for name in names})
        assert visual is not None
        return visual

    before = tokens_of("what color is it", "red")
    assert torch.equal(before, tokens_of("what color is it", "a green one and a blue one"))
    assert not torch.equal(before, tokens_of("what shape is it", "red"))


def test_a_saved_model_ends_its_answers_where_its_template_does(tmp_path: Path) -> None:
    """Here with a word that the model says, and that is not the tokenizer's end token."""
    task, prompt = make().eval(), torch.tensor([[30, 40, 50]])
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "max_new_tokens": 8}
    free = task.model.generate(**inputs)[0].tolist()
    end = next(token for token in reversed(free) if token != TOKENIZER.eos_token_id)
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    word = tokenizer.convert_ids_to_tokens(end)
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ '" + word + "' }}{% endif %}{% endfor %}"
    )
    VLMTask(task.model, tokenizer, "finetune").export(str(tmp_path))
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert saved.language_model.generation_config.eos_token_id == sorted([tokenizer.eos_token_id, end])
    assert saved.generate(**inputs)[0].tolist() == free[: free.index(end) + 1] and free.index(end) < 7


def test_bf16_autocast_agrees_with_float32() -> None:
    task = make("quecc")
    given = batch(task, range(6))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task(given).loss_sum
    torch.testing.assert_close(rounded, task(given).loss_sum, rtol=2e-2, atol=0)


@pytest.mark.parametrize("compressor", ["avgpool", "quecc"])
def test_it_learns_and_generation_agrees_with_teacher_forcing(compressor: str) -> None:
    task = make(compressor).train()
    given = batch(task, range(6))
    optimizer = torch.optim.AdamW(task.parameter_groups(OptimConfig(lr=1e-2, weight_decay=0.0)))
    for _ in range(60):
        optimizer.zero_grad()
        (task(given).loss_sum / given["num_targets"]).backward()
        optimizer.step()
    metrics = task.eval().validation_metrics(given)
    correct, count = metrics["val/token_accuracy"]
    assert correct == count == given["num_targets"]
    encoder = ConversationEncoder(TOKENIZER, 4, 64, task.model.compressor.conditioned)
    for index in range(3):
        sample = Swatches()[index]
        prompt = encoder.prompt(sample.turns[0].question)
        query = torch.tensor([prompt.query]) if prompt.query else None
        ids = task.model.generate(
            input_ids=torch.tensor([prompt.ids]),
            attention_mask=torch.ones(1, len(prompt.ids), dtype=torch.long),
            pixel_values=torch.from_numpy(np.array(sample.read_images()[0])).permute(2, 0, 1)[None],
            query_input_ids=query,
            query_attention_mask=None if query is None else torch.ones_like(query),
            max_new_tokens=3,
            eos_token_id=TOKENIZER.eos_token_id,
            pad_token_id=TOKENIZER.pad_token_id,
        )
        assert TOKENIZER.decode(ids[0], skip_special_tokens=True).strip() == sample.turns[0].answer


def test_validation_changes_nothing_and_sums_like_the_loss() -> None:
    task = make().eval()
    given = batch(task, range(6))
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    total, count = task.validation_metrics(given)["val/loss"]
    assert count == given["num_targets"] and total == pytest.approx(float(task(given).loss_sum.detach()), rel=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state_dict().items())


def test_export_is_read_by_the_auto_classes(tmp_path: Path) -> None:
    task = make("quecc").eval()
    task.export(str(tmp_path))
    loaded = VLMTask(AutoModelForImageTextToText.from_pretrained(tmp_path), TOKENIZER, "finetune").eval()
    given = batch(task, range(3))
    assert torch.equal(loaded(given).loss_sum, task(given).loss_sum)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == TOKENIZER.chat_template and tokenizer.get_vocab() == TOKENIZER.get_vocab()


def test_shard_units_are_the_layers_of_the_language_model() -> None:
    task = make()
    assert task.shard_units() == list(task.model.language_model.model.layers)
