"""Evaluation of runs: probes for towers, benchmarks for VLMs; rows go to the run's results.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vlmkit import registry
from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.data.conversations import ConversationEncoder
from vlmkit.data.samples import LabelledSample
from vlmkit.data.sources import LabelledSource, open_labelled
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import open_benchmark
from vlmkit.evals.probes.linear import PairedProbe, probe_pair
from vlmkit.evals.runner import run_benchmark
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower, build_tower
from vlmkit.pipelines.train_vlm import load_vlm
from vlmkit.runs import ResultRow, RunDirectory, open_model
from vlmkit.training import distributed
from vlmkit.training.metrics import Progress

PROBE_TRAIN, PROBE_TEST = "miniworld:train?scenes=5000", "miniworld:test?scenes=4000"
RANDOM_TOWER = "random tower"
"""The ``variant`` of the rows of the untrained tower beside the run's own."""


@dataclass(frozen=True)
class EvalSettings:
    """What to evaluate on: labelled sources of a probe (None: the embedded world), samples at most, batch, device."""

    train_data: str | None = None
    test_data: str | None = None
    limit: int | None = None
    batch_size: int = 128
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class Report:
    """The rows of one task on one run, and the same as a table for people."""

    title: str
    rows: list[ResultRow]
    columns: list[str]
    table: list[tuple[Any, ...]]
    notes: list[str]


def evaluate(
    path: Path, tasks: Sequence[str], settings: EvalSettings, progress: Progress | None = None
) -> list[Report]:
    """Evaluate a finished run on each task (none given: the one that fits the run) and record the rows in the run.

    Raises UserError for unfinished runs, and for tasks that are unknown or made for another kind of model.
    """
    run = RunDirectory(path)
    recipe = run.recipe()
    if isinstance(recipe, PretrainRecipe):
        reports = [_probe(run, task, settings, progress) for task in tasks or ["linear_probe"]]
    elif isinstance(recipe, VLMRecipe):
        reports = [_benchmark(run, recipe, task, settings, progress) for task in tasks or [_default_task(recipe)]]
    else:
        raise UserError(f"{path} is not a run of a tower or a VLM; give the --out of pretrain-superclass or train-vlm.")
    run.append_results(row for report in reports for row in report.rows)
    return reports


def _default_task(recipe: VLMRecipe) -> str:
    kind = recipe.data.train.partition(":")[0]
    if kind == "miniworld":
        return "miniworld"
    if recipe.data.val:
        return recipe.data.val
    raise UserError("This run has no held-out data to be evaluated on by default; name it with --tasks llava:FILE.")


def _probe(run: RunDirectory, task: str, settings: EvalSettings, progress: Progress | None) -> Report:
    if task != "linear_probe":
        raise UserError(f"{task!r} is not made for a vision tower, which {run.path} is; use --tasks linear_probe.")
    open_model(run.path, "pretrain-superclass")
    train_spec, test_spec = settings.train_data or PROBE_TRAIN, settings.test_data or PROBE_TEST
    train, test = (_limited(open_labelled(spec), settings.limit) for spec in (train_spec, test_spec))
    tower = build_tower(run.path)
    with seeded(0):
        random_tower = VisionTower(tower.config)
    context = distributed.setup(settings.device)
    with _shown(progress, len(train) + len(test), "linear_probe") as report:
        pairs = probe_pair(
            tower, random_tower, train, test, batch_size=settings.batch_size, device=context.device, on_progress=report
        )
    revision = f"{train.fingerprint}/{test.fingerprint}"
    rows = [
        ResultRow(
            benchmark="linear_probe",
            family=result.attribute,
            metric="accuracy",
            value=result.accuracy,
            num_samples=result.num_samples,
            stderr=result.stderr,
            data_revision=revision,
            scoring="logistic_regression",
            limit=settings.limit,
            variant=variant,
        )
        for pair in pairs
        for result, variant in ((pair.trained, ""), (pair.random, RANDOM_TOWER))
    ]
    return Report(
        f"Linear probe of {run.path} (fitted on {train_spec}, scored on {test_spec})",
        rows,
        ["attribute", "this tower", "random tower", "gain", "2 s.e.", "commonest class", "images", ""],
        [_probe_line(pair) for pair in pairs],
        [],
    )


def _probe_line(pair: PairedProbe) -> tuple[Any, ...]:
    gain, stderr = pair.difference
    return (
        pair.attribute,
        f"{pair.trained.accuracy:.3f}",
        f"{pair.random.accuracy:.3f}",
        f"{gain:+.3f}",
        f"{2 * stderr:.3f}",
        f"{pair.trained.chance:.3f}",
        pair.trained.num_samples,
        pair.note,
    )


def _benchmark(
    run: RunDirectory, recipe: VLMRecipe, task: str, settings: EvalSettings, progress: Progress | None
) -> Report:
    benchmark = open_benchmark(task)
    vlm, tokenizer = load_vlm(run.path)
    context = distributed.setup(settings.device)
    torch.nn.Module.to(vlm, context.device)
    encoder = ConversationEncoder(
        tokenizer, vlm.config.num_visual_tokens, recipe.max_length, vlm.compressor.conditioned
    )
    llm = registry.llm(recipe.llm.name).name if registry.is_llm(recipe.llm.name) else recipe.llm.name
    with _shown(progress, min(len(benchmark.samples), settings.limit or len(benchmark.samples)), task) as report:
        outcome = run_benchmark(
            vlm,
            encoder,
            benchmark,
            llm=llm,
            seed=recipe.seed,
            batch_size=settings.batch_size,
            limit=settings.limit,
            records_path=run.samples_dir / f"{benchmark.name}.jsonl",
            on_progress=report,
        )
    return Report(
        f"{task} on {run.path}: {llm}, {vlm.config.num_visual_tokens} visual tokens ({vlm.config.compressor})",
        outcome.rows,
        ["family", outcome.rows[0].metric, "stderr", "questions"],
        [(row.family, f"{row.value:.3f}", f"{row.stderr:.3f}", row.num_samples) for row in outcome.rows],
        [f"{outcome.num_bad} samples could not be read and are not counted."] if outcome.num_bad else [],
    )


class _Evenly:
    """``count`` samples of a labelled source, spread evenly over it (folders list their classes one after another)."""

    def __init__(self, source: LabelledSource, count: int) -> None:
        self._source, self._count = source, count
        self.classes, self.fingerprint = source.classes, source.fingerprint

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> LabelledSample:
        return self._source[index * len(self._source) // self._count]


def _limited(source: LabelledSource, limit: int | None) -> LabelledSource:
    return source if limit is None or limit >= len(source) else _Evenly(source, limit)


@contextmanager
def _shown(progress: Progress | None, total: int, description: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress display for the block, as the callback (done, total) that evaluations take."""
    if progress is None:
        yield None
        return
    progress.start(total, 0, description)
    try:
        yield lambda done, _total: progress.update(done, {})
    finally:
        progress.finish()
