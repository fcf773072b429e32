"""Runs a benchmark on a model: from samples to answers, scores, records on disk and result rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

import vlmkit
from vlmkit.data.images import decode_image
from vlmkit.data.samples import BadSample, Image
from vlmkit.errors import UserError
from vlmkit.evals.answer_log import Answer, AnswerLog, Window
from vlmkit.evals.bad_samples import check_readable, check_shown
from vlmkit.evals.benchmarks import Benchmark, Question
from vlmkit.evals.generation import Answerer, ImagePrompts
from vlmkit.evals.records import RecordsFile, SampleRecord
from vlmkit.evals.rows import rows_of
from vlmkit.evals.scoring.case import score_cases
from vlmkit.runs import ResultRow
from vlmkit.training import distributed
from vlmkit.training.distributed import DistributedContext

WINDOW_BATCHES = 4
"""Images that are held at a time, in batches: their questions are sorted by length together."""


@dataclass(frozen=True)
class BenchmarkOutcome:
    """A finished benchmark: its rows, family by family in order of appearance, and the record of every question.

    ``skipped`` says what is wrong with each sample that could not be read: nothing was asked about it and no score
    counts it. Questions about images that do not decode are recorded with their ``error``, and wrong.
    """

    rows: list[ResultRow]
    records: list[SampleRecord]
    skipped: list[str]


def run_benchmark(
    answerer: Answerer,
    benchmark: Benchmark,
    model: Mapping[str, Any],
    *,
    limit: int | None = None,
    records_path: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> BenchmarkOutcome:
    """Ask every question of the benchmark and score the answers; under torchrun the ranks share the work, and each
    returns the same.

    ``model`` has the fields of a result row that say which model this is (``llm``, ``seed``), beside the answerer's
    facts. ``limit`` takes the first samples (images with all their questions). ``records_path`` gets one JSON line a
    question, in one piece when all are answered. ``identity`` is everything else that decides the model's answers (its
    files, how it is prompted), as JSON: with it, answers of a run that was killed or finished are kept and not asked
    for again. ``on_progress`` is called with (samples done, samples in all). Raises UserError where there is no sample
    and where too many cannot be read.
    """
    num_samples = min(len(benchmark.samples), limit or len(benchmark.samples))
    if not num_samples:
        raise UserError(f"{benchmark.name} holds no samples to ask about; check where its data come from.")
    facts = {**answerer.facts, **model}
    about = {
        "benchmark": benchmark.name,
        "data_revision": benchmark.samples.fingerprint,
        "limit": limit,
        "num_samples": num_samples,
        "batch_size": answerer.batch_size,
        "max_new_tokens": benchmark.max_new_tokens,
        "model": facts,
        "identity": identity,
        "vlmkit": vlmkit.__version__,
    }
    file = RecordsFile(records_path) if records_path else None
    log = AnswerLog(records_path if identity else None, about)
    # Only the ranks matter here: the model is on its device already.
    context = distributed.setup("cpu")
    kept = context.on_main(lambda: _finished(file, about) if file and identity else None)
    if kept is None:
        kept = _answer_all(answerer, benchmark, num_samples, log, context, on_progress)
    elif on_progress is not None:
        on_progress(num_samples, num_samples)
    answers, skipped = kept
    check_readable(len(skipped), num_samples)
    check_shown(sum(bool(answer.error) for answer in answers), len(answers))
    records = _records(benchmark, answers)
    rows = rows_of(benchmark, records, limit, facts)
    if file and context.is_main:
        file.write(records, {**about, "scoring": benchmark.scoring, "skipped": skipped})
        log.remove()
    return BenchmarkOutcome(rows, records, skipped)


_Answers = tuple[list[Answer], list[str]]
"""The answer to every question, in the order of the samples, and what is wrong with the samples without questions."""


def _finished(file: RecordsFile, about: Mapping[str, Any]) -> _Answers | None:
    """The answers of an earlier evaluation that would be asked for in the same way; they may be scored in another.

    None also where samples could not be asked about, which may have been repaired.
    """
    asked = {**json.loads(json.dumps(about)), "skipped": []}
    known = file.about() or {}
    if {name: known.get(name) for name in asked} != asked:
        return None
    records = file.read()
    if any(record.error for record in records):
        return None
    answers = [
        Answer(
            Question(r.id, r.prompt, r.references, r.family, r.choices, r.category, r.question_id),
            r.prediction,
            r.group,
            seconds=r.seconds,
        )
        for r in records
    ]
    return answers, []


def _answer_all(
    answerer: Answerer,
    benchmark: Benchmark,
    num_samples: int,
    log: AnswerLog,
    context: DistributedContext,
    on_progress: Callable[[int, int], None] | None,
) -> _Answers:
    """Every rank answers its share of the windows that the log does not have.

    Windows are shared out whole: what is batched with what does not depend on the number of ranks.
    """
    size = WINDOW_BATCHES * answerer.batch_size
    starts = range(0, num_samples, size)
    windows = context.on_main(log.read)
    missing = [number for number in range(len(starts)) if number not in windows]

    def answer_share() -> dict[int, Window]:
        answered = {}
        with log.appending(context.rank) as append:
            for turn, number in enumerate(missing[context.rank :: context.world_size], 1):
                indices = range(starts[number], min(starts[number] + size, num_samples))
                answered[number] = _answer_window(answerer, benchmark, number, indices)
                append(answered[number])
                if on_progress is not None:
                    finished = len(windows) + min(turn * context.world_size, len(missing))
                    on_progress(min(finished * size, num_samples), num_samples)
        return answered

    for share in context.gather(context.together(answer_share)):
        windows |= share
    in_order = [windows[number] for number in range(len(starts))]
    return [a for window in in_order for a in window.answers], [s for window in in_order for s in window.skipped]


def _answer_window(answerer: Answerer, benchmark: Benchmark, number: int, indices: Iterable[int]) -> Window:
    """The answers about some samples; those whose images do not decode have none, and say so."""
    start = perf_counter()
    loaded, skipped = [], []
    for index in indices:
        try:
            loaded.append(_load(benchmark, answerer.transform, index))
        except BadSample as error:
            skipped.append(f"sample {index}: {error}")
    prompts = [item.prompts for item in loaded if item.prompts]
    texts = iter(answerer.answer(prompts, benchmark.max_new_tokens) if loaded else [])
    seconds = (perf_counter() - start) / max(1, sum(len(item.questions) for item in loaded))
    answers = [
        Answer(question, text, item.group, item.error, seconds)
        for item in loaded
        for question, text in zip(
            item.questions, next(texts) if item.prompts else [""] * len(item.questions), strict=True
        )
    ]
    return Window(number, answers, skipped)


@dataclass(frozen=True)
class _Loaded:
    """The questions of a sample, and what the answerer is given: nothing, where an image does not decode."""

    questions: Sequence[Question]
    group: str
    prompts: ImagePrompts | None
    error: str = ""


def _load(benchmark: Benchmark, transform: Callable[[torch.Tensor], torch.Tensor], index: int) -> _Loaded:
    sample = benchmark.samples[index]
    questions = benchmark.questions(sample)
    group = sample.id
    try:
        images = sample.read_images()
        group = _group(images) if images else sample.id
        shown = [transform(decode_image(image)) for image in images]
    except BadSample as error:
        return _Loaded(questions, group, None, str(error))
    return _Loaded(questions, group, ImagePrompts(sample.id, shown, [question.prompt for question in questions]))


def _group(images: Sequence[Image]) -> str:
    """A short digest of the images: benchmarks may ask about one image in several samples."""
    digest = hashlib.blake2b(digest_size=8)
    for image in images:
        digest.update(image.tobytes() if isinstance(image, np.ndarray) else image)
    return digest.hexdigest()


def _records(benchmark: Benchmark, answers: Sequence[Answer]) -> list[SampleRecord]:
    rule, scoring = benchmark.rule, benchmark.scoring
    cases = [answer.question.case(answer.prediction, answer.error) for answer in answers]
    scored = score_cases(rule, cases, scoring)
    return [
        SampleRecord(
            id=answer.question.id,
            family=answer.question.family,
            prompt=answer.question.prompt,
            prediction=answer.prediction,
            answer="" if answer.error else rule.read_answer(case, scoring),
            references=answer.question.references,
            score=case["score"],
            choices=answer.question.choices,
            category=answer.question.category,
            question_id=answer.question.question_id,
            group=answer.group,
            error=answer.error,
            seconds=answer.seconds,
        )
        for answer, case in zip(answers, scored, strict=True)
    ]
