"""Runs a benchmark on a model: from samples to answers, scores, records on disk and result rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vlmkit.contracts import Batch
from vlmkit.data.images import decode_image
from vlmkit.data.loader import eval_batches
from vlmkit.evals.bad_samples import check_readable
from vlmkit.evals.benchmarks import Benchmark, Question
from vlmkit.evals.generation import Answerer, ImagePrompts
from vlmkit.evals.scoring.case import ScoredCase, score_cases
from vlmkit.evals.statistics import mean_and_stderr
from vlmkit.runs import ResultRow, write_atomically

WINDOW_BATCHES = 4
"""Images that are held at a time, in batches: their questions are sorted by length together."""


@dataclass(frozen=True)
class SampleRecord:
    """One question, what the model wrote, how the rule read it, and what that was worth (0..1)."""

    id: str
    family: str
    prompt: str
    prediction: str
    answer: str
    references: tuple[str, ...]
    score: float
    choices: tuple[str, ...] = ()
    category: str = ""
    question_id: str = ""


@dataclass(frozen=True)
class BenchmarkOutcome:
    """A finished benchmark: its rows, family by family in order of appearance, and the record of every question.

    ``num_bad`` samples could not be read; nothing was asked about them and no score counts them.
    """

    rows: list[ResultRow]
    records: list[SampleRecord]
    num_bad: int


def run_benchmark(
    answerer: Answerer,
    benchmark: Benchmark,
    model: Mapping[str, Any],
    *,
    limit: int | None = None,
    records_path: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BenchmarkOutcome:
    """Ask every question of the benchmark and score the answers.

    ``model`` has the fields of a result row that say which model this is (``llm``, ``seed``), beside the answerer's
    facts. ``limit`` takes the first samples (images with all their questions). ``records_path`` gets one JSON line a
    question, in one piece when all are answered. ``on_progress`` is called with (samples done, samples in all). Raises
    UserError where too many samples cannot be read.
    """
    num_samples = min(len(benchmark.samples), limit or len(benchmark.samples))
    load = _loader(benchmark, answerer.transform)
    asked: list[tuple[Question, str]] = []
    done = num_bad = 0
    for batch in eval_batches(load, num_samples, WINDOW_BATCHES * answerer.batch_size, _collate):
        answers = answerer.answer(batch["prompts"])
        for questions, texts in zip(batch["questions"], answers, strict=True):
            asked += zip(questions, texts, strict=True)
        num_bad += batch["num_bad"]
        done += len(answers) + batch["num_bad"]
        if on_progress is not None:
            on_progress(done, num_samples)
    check_readable(num_bad, num_samples)
    records = _records(benchmark, asked)
    if records_path is not None:
        write_atomically(records_path, "".join(json.dumps(asdict(record)) + "\n" for record in records))
    return BenchmarkOutcome(_rows(benchmark, records, limit, {**answerer.facts, **model}), records, num_bad)


_Loaded = tuple[ImagePrompts, Sequence[Question]]


def _loader(benchmark: Benchmark, transform: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int, int], _Loaded]:
    def load(index: int, epoch: int) -> _Loaded:
        sample = benchmark.samples[index]
        questions = benchmark.questions(sample)
        images = [transform(decode_image(image)) for image in sample.read_images()]
        return ImagePrompts(sample.id, images, [question.prompt for question in questions]), questions

    return load


def _collate(items: Sequence[_Loaded]) -> Batch:
    prompts, questions = zip(*items, strict=True)
    return {"prompts": prompts, "questions": questions}


def _records(benchmark: Benchmark, asked: Sequence[tuple[Question, str]]) -> list[SampleRecord]:
    rule, scoring = benchmark.rule, benchmark.scoring
    scored = score_cases(rule, [question.case(text) for question, text in asked], scoring)
    return [
        SampleRecord(
            question.id,
            question.family,
            question.prompt,
            text,
            rule.read_answer(case, scoring),
            question.references,
            case["score"],
            question.choices,
            question.category,
            question.question_id,
        )
        for (question, text), case in zip(asked, scored, strict=True)
    ]


def _rows(
    benchmark: Benchmark, records: Sequence[SampleRecord], limit: int | None, model: Mapping[str, Any]
) -> list[ResultRow]:
    """For each family the benchmark's own number, and the rule's other numbers as rows of no family."""
    families: dict[str, list[ScoredCase]] = {}
    for record in records:
        families.setdefault(record.family, []).append(_scored_case(record))
    rows = []
    for family, scored in families.items():
        numbers = benchmark.rule.aggregate(scored, benchmark.scoring)
        _, stderr = mean_and_stderr([case["score"] for case in scored])
        for metric, value in numbers.items():
            own = metric == benchmark.rule.METRIC
            rows.append(
                ResultRow(
                    benchmark=benchmark.name,
                    family=family if own else "",
                    metric=metric,
                    value=value,
                    num_samples=len(scored),
                    stderr=stderr,
                    data_revision=benchmark.samples.fingerprint,
                    scoring=benchmark.scoring,
                    limit=limit,
                    variant="" if own or family == benchmark.name else family,
                    **model,
                )
            )
    return rows


def _scored_case(record: SampleRecord) -> ScoredCase:
    return {
        "prediction": record.prediction,
        "references": record.references,
        "choices": record.choices,
        "category": record.category,
        "question_id": record.question_id,
        "score": record.score,
    }
