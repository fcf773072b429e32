"""Benchmarks on a tiny VLM that has learnt some answers: batching, teacher forcing, records and rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from vlmkit.config import CompressorConfig, LLMConfig
from vlmkit.contracts import IGNORE_INDEX
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.images import decode_image
from vlmkit.data.samples import BadSample, ConversationSample, Turn
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import Benchmark
from vlmkit.evals.benchmarks.miniworld import questions
from vlmkit.evals.generation import GreedyAnswerer, ImagePrompts, Likelihood
from vlmkit.evals.records import SampleRecord
from vlmkit.evals.runner import BenchmarkOutcome, run_benchmark
from vlmkit.evals.scoring import exact_match
from vlmkit.models.llm import load_llm
from vlmkit.models.prompt_prefix import PromptPrefix
from vlmkit.models.vision_tower import build_tower
from vlmkit.models.vlm import VLM

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230), "white": (240, 240, 240)}
PAIRS = [(top, bottom) for top in COLOURS for bottom in COLOURS if top != bottom]


class Flags:
    """Images of two colours with three questions of very different length each; a few samples may be broken."""

    fingerprint = "flags"

    def __init__(self, pairs: Sequence[tuple[str, str]], bad: tuple[int, ...] = ()) -> None:
        self.pairs = pairs
        self.bad = bad

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> ConversationSample:
        if index in self.bad:
            raise BadSample(f"sample {index} is broken")
        top, bottom = self.pairs[index]
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[:32], pixels[32:] = COLOURS[top], COLOURS[bottom]
        turns = (
            Turn("upper color", top, "attribute"),
            Turn("name the color that is seen at the lower side of this picture", bottom, "attribute"),
            Turn("read the sign", f"{top[0]} {bottom[0]} {index % 7}", "ocr"),
        )
        return ConversationSample(f"flag-{index}", (pixels,), turns, independent=True)


def flags_benchmark(source: Flags) -> Benchmark:
    return Benchmark("flags", source, questions, exact_match)


def run(
    vlm: VLM,
    encoder: ConversationEncoder,
    benchmark: Benchmark,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    **more: Any,
) -> BenchmarkOutcome:
    answerer = GreedyAnswerer(vlm, encoder, batch_size=batch_size, max_new_tokens=max_new_tokens)
    return run_benchmark(answerer, benchmark, {"llm": "nano"}, **more)


def build(compressor: str) -> tuple[VLM, ConversationEncoder]:
    tower = build_tower("ViT-mini-8-64")
    llm, tokenizer = load_llm(LLMConfig(name="nano"), seed=0)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    vlm = VLM.join(tower, llm, CompressorConfig(name=compressor, num_visual_tokens=4), image_token, seed=0)
    return vlm, ConversationEncoder(tokenizer, 4, max_length=256, conditioned=vlm.compressor.conditioned)


def encoded(encoder: ConversationEncoder, source: Flags) -> Iterator[tuple[int, list[int], list[int], list[int]]]:
    """(sample index, token ids, labels, question ids) of every question by itself."""
    for index in range(len(source)):
        sample = source[index]
        for turn in sample.turns:
            (sequence,) = encoder.encode(ConversationSample(sample.id, sample.images, (turn,), independent=True))
            (branch,) = sequence.branches
            labels = [IGNORE_INDEX] * len(sequence.prefix) + branch.labels
            yield index, sequence.prefix + branch.ids, labels, sequence.query or [0]


def images(source: Flags) -> torch.Tensor:
    return torch.stack([decode_image(source[index].images[0]) for index in range(len(source))])


def right_padded(vlm: VLM, encoder: ConversationEncoder, source: Flags) -> dict[str, torch.Tensor]:
    """All questions as one training batch."""
    index, ids, labels, queries = zip(*encoded(encoder, source), strict=True)

    def pad(rows: Sequence[list[int]], value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    return {
        "input_ids": pad(ids, 0),
        "labels": pad(labels, IGNORE_INDEX),
        "attention_mask": pad([[1] * len(row) for row in ids], 0),
        "image_features": vlm.cacheable_features(images(source)),
        "image_index": torch.tensor(index),
        "query_input_ids": pad(queries, 0),
        "query_attention_mask": pad([[1] * len(row) for row in queries], 0),
    }


@torch.no_grad()
def right_under_teacher_forcing(vlm: VLM, encoder: ConversationEncoder, source: Flags) -> list[bool]:
    """Whether every answer token of each question is the likeliest one, computed unpadded, one by one."""
    pixels = images(source)
    right = []
    for index, ids, labels, query in encoded(encoder, source):
        output = vlm(
            torch.tensor([ids]),
            pixel_values=pixels[index : index + 1],
            query_input_ids=torch.tensor([query]),
            query_attention_mask=torch.ones(1, len(query), dtype=torch.long),
            labels=torch.tensor([labels]),
        )
        right.append(bool((output.logits.argmax(1) == output.targets).all()))
    return right


@pytest.fixture(scope="module", params=["avgpool", "quecc"])
def trained(request: pytest.FixtureRequest) -> tuple[VLM, ConversationEncoder]:
    """A VLM that has seen half of the flags: it answers some questions and fails at others."""
    torch.manual_seed(0)
    vlm, encoder = build(request.param)
    known = Flags(PAIRS[::2])
    trainable = [*vlm.compressor.parameters(), *vlm.projector.parameters(), *vlm.language_model.parameters()]
    optimizer = torch.optim.Adam(trainable, lr=1e-2)
    batch = right_padded(vlm, encoder, known)
    for _ in range(80):
        optimizer.zero_grad()
        vlm.train()(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
    return vlm.eval(), encoder


def test_teacher_forcing_agrees_with_greedy_generation(trained: tuple[VLM, ConversationEncoder]) -> None:
    vlm, encoder = trained
    source = Flags(PAIRS)
    forced = right_under_teacher_forcing(vlm, encoder, source)
    outcome = run(vlm, encoder, flags_benchmark(source), batch_size=5)
    assert [record.score == 1.0 for record in outcome.records] == forced
    assert 0 < sum(forced) < len(forced), "a model that is always right or always wrong would prove nothing"


def test_answers_do_not_depend_on_the_batch_size(trained: tuple[VLM, ConversationEncoder]) -> None:
    vlm, encoder = trained
    benchmark = flags_benchmark(Flags(PAIRS))
    one_by_one, *others = (run(vlm, encoder, benchmark, batch_size=size, max_new_tokens=8) for size in (1, 3, 32))
    for other in others:
        assert other.records == one_by_one.records
    assert len({record.prediction for record in one_by_one.records}) > 3


@torch.no_grad()
def test_likelihoods_are_those_of_one_answer_at_a_time(trained: tuple[VLM, ConversationEncoder]) -> None:
    """Whatever they are batched with; one at a time is right-padded by nothing and summed in float64."""
    vlm, encoder = trained
    source = Flags(PAIRS)
    window = [
        ImagePrompts("all", [image], [turn.question for turn in source[index].turns])
        for index, image in enumerate(images(source))
    ]
    answers = [[turn.answer for turn in source[index].turns] for index in range(len(source))]
    alone: list[Likelihood] = []
    pixels = images(source)
    for index, ids, labels, query in encoded(encoder, source):
        tokens, asked = torch.tensor([ids]), torch.tensor([query])
        logits = (
            vlm(
                tokens,
                pixel_values=pixels[index : index + 1],
                query_input_ids=asked,
                query_attention_mask=torch.ones_like(asked),
            )
            .logits[0]
            .double()
        )
        kept = [place for place, label in enumerate(labels) if label != IGNORE_INDEX]
        steps = [logits[place - 1].log_softmax(0) for place in kept]
        scores = [float(step[ids[place]]) for step, place in zip(steps, kept, strict=True)]
        greedy = all(int(step.argmax()) == ids[place] for step, place in zip(steps, kept, strict=True))
        alone.append(Likelihood(sum(scores), len(kept), greedy))
    for size in (3, 32):
        answerer = GreedyAnswerer(vlm, encoder, batch_size=size)
        scored = [one for of_item in answerer.likelihoods(window, answers) for one in of_item]
        assert [(one.num_tokens, one.greedy) for one in scored] == [(one.num_tokens, one.greedy) for one in alone]
        for one, expected in zip(scored, alone, strict=True):
            assert one.log_probability == pytest.approx(expected.log_probability, rel=0, abs=1e-5)
    generated = GreedyAnswerer(vlm, encoder, batch_size=32).answer(window)
    same = [
        text == answer
        for texts, row in zip(generated, answers, strict=True)
        for text, answer in zip(texts, row, strict=True)
    ]
    assert same == [one.greedy for one in alone] and 0 < sum(same) < len(same)


def test_a_likelihood_is_of_the_last_answer_of_a_dialogue(trained: tuple[VLM, ConversationEncoder]) -> None:
    vlm, encoder = trained
    answerer = GreedyAnswerer(vlm, encoder, batch_size=2)
    (pixels,) = images(Flags(PAIRS[:1]))
    later = ImagePrompts("later", [pixels], ["read the sign"], [Turn("upper color", "red")])
    texts = [ImagePrompts("text", [], ["upper color"]), later]
    (asked,), (of_dialogue,) = answerer.likelihoods(texts, [["red"], ["r"]])
    assert of_dialogue.num_tokens == len(encoder.tokenizer.tokenize("r")) + 1
    for item, answer, together in ((texts[0], "red", asked), (later, "r", of_dialogue)):
        ((alone,),) = answerer.likelihoods([item], [[answer]])
        assert together.log_probability == pytest.approx(alone.log_probability, rel=0, abs=1e-5)


@pytest.mark.parametrize("order", ["image_first", "text_first"])
def test_answers_are_those_of_prompts_read_whole(
    trained: tuple[VLM, ConversationEncoder], order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the prompts share is read once, for all questions and for one question about every image."""
    vlm, given = trained
    encoder = ConversationEncoder(given.tokenizer, 4, 256, given.conditioned, prompt_order=order)
    every = flags_benchmark(Flags(PAIRS))
    read, seen = PromptPrefix.read, []

    def watched(llm: Any, ids: Sequence[int]) -> PromptPrefix | None:
        seen.append(encoder.tokenizer.decode(ids))
        return read(llm, ids)

    def records(benchmark: Benchmark, read: Any) -> list[SampleRecord]:
        monkeypatch.setattr(PromptPrefix, "read", read)
        return run(vlm, encoder, benchmark, batch_size=3, max_new_tokens=6).records

    for benchmark in (replace(every, questions=lambda sample: questions(sample)[:1]), every):
        assert records(benchmark, watched) == records(benchmark, lambda llm, ids: None)
    of_one_question, of_all = seen  # once each, over four windows
    assert of_one_question.rstrip().endswith("upper color" if order == "text_first" else "user|>")
    assert of_one_question.startswith(of_all) and "upper" not in of_all


def test_a_conditioned_compressor_gets_each_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, encoder = build("quecc")
    source = Flags(PAIRS[:2])
    prompts = [turn.question for index in range(2) for turn in source[index].turns]
    seen: list[torch.Tensor] = []
    question_vector = vlm.question_vector
    monkeypatch.setattr(vlm, "question_vector", lambda *args: (seen.append(question_vector(*args)), seen[-1])[1])
    run(vlm, encoder, flags_benchmark(source), batch_size=6, max_new_tokens=1)
    (batched,) = seen
    ids = [torch.tensor([encoder.tokenizer(prompt)["input_ids"]]) for prompt in prompts]
    alone = torch.cat([question_vector(row, torch.ones_like(row)) for row in ids])
    distances = torch.cdist(batched, alone)
    # Two images, three questions: every question stands twice, in whatever order the batch was put.
    assert ((distances < 1e-4).sum(dim=0) == 2).all() and ((distances < 1e-4).sum(dim=1) == 2).all()


def test_tower_runs_once_an_image(trained: tuple[VLM, ConversationEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    vlm, encoder = trained
    seen = []
    forward = vlm.vision_tower.forward
    monkeypatch.setattr(
        vlm.vision_tower, "forward", lambda pixels, *rest: (seen.append(len(pixels)), forward(pixels, *rest))[1]
    )
    outcome = run(vlm, encoder, flags_benchmark(Flags(PAIRS)), batch_size=5, max_new_tokens=1)
    assert (sum(seen), len(outcome.records)) == (12, 36)
    assert max(seen) == 5


def test_records_rows_and_progress(trained: tuple[VLM, ConversationEncoder], tmp_path: Path) -> None:
    vlm, encoder = trained
    progress: list[tuple[int, int]] = []
    path = tmp_path / "records" / "flags.jsonl"
    outcome = run_benchmark(
        GreedyAnswerer(vlm, encoder, batch_size=1, max_new_tokens=8),
        flags_benchmark(Flags(PAIRS)),
        {"llm": "nano", "seed": 3},
        limit=6,
        records_path=path,
        on_progress=lambda *done: progress.append(done),
    )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"flag-{image}/{turn}" for image in range(6) for turn in range(3)]
    assert lines[0]["prompt"] == "upper color" and lines[0]["references"] == ["red"]
    assert lines == [
        {**vars(record), "references": list(record.references), "choices": []} for record in outcome.records
    ]
    assert progress == [(4, 6), (6, 6)]

    attribute, ocr = outcome.rows
    right = [line["score"] for line in lines if line["family"] == "attribute"]
    assert (attribute.family, attribute.num_samples, ocr.family, ocr.num_samples) == ("attribute", 12, "ocr", 6)
    assert attribute.value == pytest.approx(sum(right) / 12)
    # Two questions about each of six images: the error is that of six sums of two.
    sums = np.array(right).reshape(6, 2).sum(axis=1)
    assert attribute.stderr == pytest.approx(6 * sums.std(ddof=1) / 6**0.5 / 12)
    assert attribute.ci_low <= attribute.value <= attribute.ci_high and attribute.num_errors == 0
    assert (ocr.benchmark, ocr.metric, ocr.scoring, ocr.data_revision) == (
        "flags",
        "exact_match",
        "official",
        "flags",
    )
    assert (ocr.limit, ocr.seed, ocr.llm, ocr.visual_tokens) == (6, 3, "nano", 4)
    assert ocr.query == {"avgpool": None, "quecc": "llm"}[ocr.compressor]
    embeddings = vlm.language_model.get_input_embeddings().weight.numel()
    assert ocr.llm_params == sum(p.numel() for p in vlm.language_model.parameters())
    tables = 1 if vlm.config.text_config.tie_word_embeddings else 2
    assert ocr.llm_params_non_embedding == ocr.llm_params - tables * embeddings
    assert ocr.total_params == vlm.num_parameters()


def test_unreadable_samples_are_counted_and_too_many_refused(
    trained: tuple[VLM, ConversationEncoder], tmp_path: Path
) -> None:
    vlm, encoder = trained
    outcome = run(vlm, encoder, flags_benchmark(Flags(PAIRS, (2,))), max_new_tokens=1)
    assert len(outcome.skipped) == 1 and len(outcome.records) == 33
    path = tmp_path / "records.jsonl"
    with pytest.raises(UserError, match="2 of 12 samples cannot be read"):
        run(vlm, encoder, flags_benchmark(Flags(PAIRS, (2, 5))), max_new_tokens=1, records_path=path)
    assert not path.exists()


def test_answers_end_at_the_end_token(trained: tuple[VLM, ConversationEncoder]) -> None:
    vlm, encoder = trained
    outcome = run(vlm, encoder, flags_benchmark(Flags(PAIRS[::2])), batch_size=32)
    colours = [record.prediction for record in outcome.records if record.family == "attribute"]
    assert all(len(prediction.split()) == 1 for prediction in colours)
    assert not any(token in prediction for prediction in colours for token in encoder.tokenizer.all_special_tokens)


def test_a_benchmark_says_how_long_answers_may_be(trained: tuple[VLM, ConversationEncoder]) -> None:
    vlm, encoder = trained
    short = replace(flags_benchmark(Flags(PAIRS[:2])), max_new_tokens=1)
    whole = flags_benchmark(Flags(PAIRS[:2]))
    told, untold = (run(vlm, encoder, benchmark, max_new_tokens=8).records for benchmark in (short, whole))
    assert all(len(record.prediction.split()) <= 1 for record in told)
    assert any(len(record.prediction.split()) > 1 for record in untold)
