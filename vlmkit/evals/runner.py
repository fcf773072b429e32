"""Runs a benchmark on a VLM: from samples to answers, scores, records on disk and result rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vlmkit.contracts import Batch
from vlmkit.data.conversations import ConversationEncoder
from vlmkit.data.images import PadTransform, decode_image
from vlmkit.data.loader import eval_batches
from vlmkit.evals.bad_samples import check_readable
from vlmkit.evals.benchmarks import Benchmark, Question
from vlmkit.evals.generation import GreedyAnswerer, ImagePrompts
from vlmkit.models.vlm import VLM
from vlmkit.runs import ResultRow, write_atomically

MAX_NEW_TOKENS = 32
"""Room for an answer; short-answer benchmarks need a few tokens."""
WINDOW_BATCHES = 4
"""Images whose features are held at a time, in batches: their questions are sorted by length together."""


@dataclass(frozen=True)
class SampleRecord:
    """One question, what the model wrote, and what that was worth (0..1)."""

    id: str
    family: str
    prompt: str
    prediction: str
    references: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class BenchmarkOutcome:
    """A finished benchmark: a row for each family, in order of appearance, and the record of every question.

    ``num_bad`` samples could not be read; nothing was asked about them and no score counts them.
    """

    rows: list[ResultRow]
    records: list[SampleRecord]
    num_bad: int


def run_benchmark(
    vlm: VLM,
    encoder: ConversationEncoder,
    benchmark: Benchmark,
    *,
    llm: str,
    seed: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
    limit: int | None = None,
    records_path: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BenchmarkOutcome:
    """Ask every question of the benchmark, greedily, with the encoder's number of visual tokens, and score the answers.

    ``llm`` and ``seed`` say in the rows which model this is. ``limit`` takes the first samples (images with all their
    questions). ``records_path`` gets one JSON line a question, in one piece when all are answered. ``on_progress`` is
    called with (samples done, samples in all). Raises UserError where too many samples cannot be read.
    """
    num_samples = min(len(benchmark.samples), limit or len(benchmark.samples))
    answerer = GreedyAnswerer(vlm, encoder, batch_size=batch_size, max_new_tokens=max_new_tokens)
    load = _loader(benchmark, PadTransform(vlm.vision_tower.image_size))
    records: list[SampleRecord] = []
    done = num_bad = 0
    for batch in eval_batches(load, num_samples, WINDOW_BATCHES * batch_size, _collate):
        answers = answerer.answer(batch["prompts"])
        for questions, texts in zip(batch["questions"], answers, strict=True):
            records += [_record(benchmark, *pair) for pair in zip(questions, texts, strict=True)]
        num_bad += batch["num_bad"]
        done += len(answers) + batch["num_bad"]
        if on_progress is not None:
            on_progress(done, num_samples)
    check_readable(num_bad, num_samples)
    if records_path is not None:
        write_atomically(records_path, "".join(json.dumps(asdict(record)) + "\n" for record in records))
    return BenchmarkOutcome(
        _rows(benchmark, records, limit, {"llm": llm, "seed": seed, **model_facts(vlm, encoder)}), records, num_bad
    )


def model_facts(vlm: VLM, encoder: ConversationEncoder) -> dict[str, Any]:
    """The fields of a result row that the model and its prompts answer: parameters, visual tokens, compressor, query.

    Non-embedding parameters leave out the token embedding and the language-model head; tied weights count once.
    """
    embeddings = {id(vlm.get_input_embeddings().weight), id(vlm.get_output_embeddings().weight)}
    language_model = list(vlm.language_model.parameters())
    return {
        "llm_params": _count(language_model),
        "llm_params_non_embedding": _count(weight for weight in language_model if id(weight) not in embeddings),
        "total_params": _count(vlm.parameters()),
        "visual_tokens": encoder.num_visual_tokens,
        "compressor": vlm.config.compressor,
        "query": vlm.config.query if vlm.compressor.reads_question else None,
    }


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


_Loaded = tuple[ImagePrompts, Sequence[Question]]


def _loader(benchmark: Benchmark, transform: PadTransform) -> Callable[[int, int], _Loaded]:
    def load(index: int, epoch: int) -> _Loaded:
        sample = benchmark.samples[index]
        questions = benchmark.questions(sample)
        images = [transform(decode_image(image)) for image in sample.read_images()]
        empty = torch.empty(0, 3, transform.size, transform.size, dtype=torch.uint8)
        pixels = torch.stack(images) if images else empty
        return ImagePrompts(sample.id, pixels, [question.prompt for question in questions]), questions

    return load


def _collate(items: Sequence[_Loaded]) -> Batch:
    prompts, questions = zip(*items, strict=True)
    return {"prompts": prompts, "questions": questions}


def _record(benchmark: Benchmark, question: Question, answer: str) -> SampleRecord:
    score = benchmark.score(answer, question.references)
    return SampleRecord(question.id, question.family, question.prompt, answer, question.references, score)


def _rows(
    benchmark: Benchmark, records: Sequence[SampleRecord], limit: int | None, model: dict[str, Any]
) -> list[ResultRow]:
    scores: dict[str, list[float]] = {}
    for record in records:
        scores.setdefault(record.family, []).append(record.score)
    rows = []
    for family, values in scores.items():
        summary = benchmark.aggregate(values)
        rows.append(
            ResultRow(
                benchmark=benchmark.name,
                family=family,
                metric=benchmark.metric,
                value=summary["mean"],
                num_samples=int(summary["count"]),
                stderr=summary["stderr"],
                data_revision=benchmark.samples.fingerprint,
                scoring=benchmark.scoring,
                limit=limit,
                **model,
            )
        )
    return rows
