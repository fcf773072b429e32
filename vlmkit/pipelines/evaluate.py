"""Evaluation of runs: each kind of run has its tasks; rows go to the run's results.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vlmkit import registry
from vlmkit.config import LLMConfig, PretrainRecipe, VLMRecipe
from vlmkit.data.conversations import ConversationEncoder
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import Benchmark, open_benchmark
from vlmkit.evals.families import family_means, variant_of
from vlmkit.evals.generation import MAX_NEW_TOKENS, GreedyAnswerer
from vlmkit.evals.progress import shown
from vlmkit.evals.runner import BenchmarkOutcome, run_benchmark
from vlmkit.models.transformers_tower import is_hub_directory
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.evaluate_tower import evaluate_tower
from vlmkit.pipelines.reports import EvalSettings, Report, score_table
from vlmkit.pipelines.tower_subject import RANDOM_TOWER
from vlmkit.pipelines.vlm_models import encoder_of, load_vlm
from vlmkit.runs import RunDirectory, files_stamp, is_run
from vlmkit.training import distributed
from vlmkit.training.metrics import Progress

_NAMED = 3
"""Bad samples that a report names; the records name all."""

__all__ = ["RANDOM_TOWER", "EvalSettings", "Report", "evaluate"]


def evaluate(
    path: Path, tasks: Sequence[str], settings: EvalSettings, progress: Progress | None = None
) -> list[Report]:
    """Evaluate a finished run on each task (none given: the one that fits the run), recording its rows as it is done.

    A VLM is evaluated at each of ``settings.tokens``. ``path`` may also be a directory with a LLaVA-1.5 checkpoint,
    which has no task of its own. Raises UserError for unfinished runs, for tasks that are unknown or made for another
    kind of model, and for a token count that the model does not serve.
    """
    run = RunDirectory(path)
    checkpoint = not is_run(path) and is_hub_directory(str(path))
    recipe = _checkpoint_recipe(path, tasks) if checkpoint else run.recipe()
    upcoming: Iterable[Report]
    if isinstance(recipe, PretrainRecipe):
        if settings.tokens:
            raise UserError(f"{path} is a tower, which has no number of visual tokens to choose; leave --tokens out.")
        upcoming = evaluate_tower(run, recipe, tasks, settings, progress)
    elif isinstance(recipe, VLMRecipe):
        upcoming = _evaluate_vlm(run, recipe, tasks or [_default_task(recipe)], settings, progress)
    else:
        raise UserError(f"{path} is not a run of a tower or a VLM; give the --out of pretrain-superclass or train-vlm.")
    reports = []
    for report in upcoming:
        _record(run, report, settings)
        reports.append(report)
    means = family_means([*run.results(), *(row for report in reports for row in report.rows)])
    evaluated = {row.benchmark for report in reports for row in report.rows}
    if means := [row for row in means if not evaluated.isdisjoint(row.benchmarks.split(","))]:
        reports.append(Report(f"Families on {run.path}", means, *score_table(means)))
        _record(run, reports[-1], settings)
    return reports


def _record(run: RunDirectory, report: Report, settings: EvalSettings) -> None:
    """Add the rows to the run's; of several processes one does."""
    if distributed.setup(settings.device).is_main:
        run.append_results(report.rows)


def _checkpoint_recipe(path: Path, tasks: Sequence[str]) -> VLMRecipe:
    """What a recipe would say of a model that was trained elsewhere."""
    if not tasks:
        raise UserError(f"{path} is a checkpoint without a recipe: say what to evaluate it on, with --tasks.")
    return VLMRecipe(llm=LLMConfig(name=str(path)))


def _default_task(recipe: VLMRecipe) -> str:
    if isinstance(recipe.data.train, str) and recipe.data.train.partition(":")[0] == "miniworld":
        return "miniworld"
    if recipe.data.val:
        return recipe.data.val
    raise UserError("This run has no held-out data to be evaluated on by default; name it with --tasks llava:FILE.")


def _evaluate_vlm(
    run: RunDirectory, recipe: VLMRecipe, tasks: Sequence[str], settings: EvalSettings, progress: Progress | None
) -> Iterator[Report]:
    """A report for each task and token count."""
    benchmarks = {task: _open_benchmark(task, settings) for task in tasks}
    vlm, tokenizer = load_vlm(run.path)
    counts = settings.tokens or (vlm.config.num_visual_tokens,)
    encoders = [encoder_of(vlm, tokenizer, recipe.max_length, count) for count in counts]
    torch.nn.Module.to(vlm, distributed.setup(settings.device).device)
    for task, benchmark in benchmarks.items():
        for encoder in encoders:
            yield _benchmark(run, recipe, vlm, encoder, task, benchmark, settings, progress)


def _open_benchmark(task: str, settings: EvalSettings) -> Benchmark:
    """The benchmark, scored as asked for, or as its authors do if it has no such rule."""
    benchmark = open_benchmark(task, settings.data_dir)
    return replace(benchmark, scoring=variant_of(benchmark.name, settings.scoring))


def _benchmark(
    run: RunDirectory,
    recipe: VLMRecipe,
    vlm: VLM,
    encoder: ConversationEncoder,
    task: str,
    benchmark: Benchmark,
    settings: EvalSettings,
    progress: Progress | None,
) -> Report:
    llm = registry.llm(recipe.llm.name).name if registry.is_llm(recipe.llm.name) else recipe.llm.name
    count = encoder.num_visual_tokens
    records = f"{benchmark.name}-{count}" if len(vlm.config.token_counts) > 1 else benchmark.name
    identity = {
        "files": files_stamp(run.model_dir if run.finished else run.path),
        "max_length": encoder.max_length,
        "max_new_tokens": MAX_NEW_TOKENS,
        "device": vlm.device.type,
    }
    with shown(progress, min(len(benchmark.samples), settings.limit or len(benchmark.samples)), task) as report:
        outcome = run_benchmark(
            GreedyAnswerer(vlm, encoder, batch_size=settings.batch_size),
            benchmark,
            {"llm": llm, "seed": recipe.seed},
            limit=settings.limit,
            records_path=run.samples_dir / f"{records}.jsonl",
            identity=identity,
            on_progress=report,
        )
    notes = _notes(outcome, benchmark, settings)
    columns, table = score_table(outcome.rows)
    title = f"{task} on {run.path}: {llm}, {count} visual tokens ({vlm.config.compressor})"
    return Report(title, outcome.rows, columns, table, notes)


def _notes(outcome: BenchmarkOutcome, benchmark: Benchmark, settings: EvalSettings) -> list[str]:
    """What a reader of the scores has to know: what was left out, or counts as wrong, and by which rule."""
    notes = []
    if outcome.skipped:
        notes.append(f"Left out, because they cannot be read: {_first(outcome.skipped)}.")
    if errors := [f"{record.id} ({record.error})" for record in outcome.records if record.error]:
        notes.append(f"Counted as wrong, because their images do not decode: {_first(errors)}.")
    if settings.limit and settings.limit < len(benchmark.samples):
        notes.append(f"The first {settings.limit} of {len(benchmark.samples)} samples (the limit).")
    if benchmark.scoring != settings.scoring:
        notes.append(f"Scored by the {benchmark.scoring} rule: there is no {settings.scoring} one that differs.")
    return notes


def _first(causes: Sequence[str]) -> str:
    """How many there are, and the first few."""
    more = ", ..." if len(causes) > _NAMED else ""
    return f"{len(causes)}: {', '.join(causes[:_NAMED])}{more}"
