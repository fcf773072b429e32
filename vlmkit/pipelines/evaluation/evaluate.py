"""Evaluation of models: each kind has its tasks; rows go to the run's results.jsonl, or to one of the model's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import Benchmark, open_benchmark
from vlmkit.evals.families import family_means, variant_of
from vlmkit.evals.generation import Answerer
from vlmkit.evals.progress import shown
from vlmkit.evals.runner import BenchmarkOutcome, run_benchmark
from vlmkit.pipelines.evaluation.evaluate_tower import evaluate_tower
from vlmkit.pipelines.evaluation.reports import EvalSettings, Report, score_table
from vlmkit.pipelines.evaluation.tower_subject import RANDOM_TOWER
from vlmkit.pipelines.evaluation.vlm_subject import VLMSubject, is_checkpoint, open_checkpoint, open_run
from vlmkit.runs import RunDirectory
from vlmkit.training import distributed
from vlmkit.training.metrics import Progress

_NAMED = 3
"""Bad samples that a report names; the records name all."""

__all__ = ["RANDOM_TOWER", "EvalSettings", "Report", "evaluate"]


def evaluate(
    path: Path, tasks: Sequence[str], settings: EvalSettings, progress: Progress | None = None
) -> list[Report]:
    """Evaluate a model on each task (none given: the one that fits the run), recording its rows as it is done.

    ``path`` is a finished run, or else a VLM that was trained elsewhere, in transformers' layout or a hub id, which has
    no task of its own. A VLM is evaluated at each of ``settings.tokens``. Raises UserError for unfinished runs, for
    tasks that are unknown or made for another kind of model, and for a token count that the model does not serve.
    """
    recipe = None if is_checkpoint(path) else RunDirectory(path).recipe()
    if recipe and settings.out:
        raise UserError(f"{path} is a run, and its results stay with it; leave --out out.")
    upcoming: Iterable[Report]
    if recipe is None or isinstance(recipe, VLMRecipe):
        benchmarks = {task: _open_benchmark(task, settings) for task in tasks or [_default_task(path, recipe)]}
        subject = open_run(path, recipe, settings) if recipe else open_checkpoint(path, settings)
        run, upcoming = subject.results, _evaluate_vlm(path, subject, benchmarks, settings, progress)
    elif isinstance(recipe, PretrainRecipe):
        if settings.tokens:
            raise UserError(f"{path} is a tower, which has no number of visual tokens to choose; leave --tokens out.")
        run = RunDirectory(path)
        upcoming = evaluate_tower(run, recipe, tasks, settings, progress)
    else:
        raise UserError(f"{path} is not a run of a tower or a VLM; give the --out of pretrain-superclass or train-vlm.")
    reports = []
    for report in upcoming:
        _record(run, report, settings)
        reports.append(report)
    means = family_means([*run.results(), *(row for report in reports for row in report.rows)])
    evaluated = {row.benchmark for report in reports for row in report.rows}
    if means := [row for row in means if not evaluated.isdisjoint(row.benchmarks.split(","))]:
        reports.append(Report(f"Families on {path}", means, *score_table(means)))
        _record(run, reports[-1], settings)
    return reports


def _record(run: RunDirectory, report: Report, settings: EvalSettings) -> None:
    """Add the rows to the run's; of several processes one does."""
    if distributed.setup(settings.device).is_main:
        run.append_results(report.rows)


def _default_task(path: Path, recipe: VLMRecipe | None) -> str:
    if recipe is None:
        raise UserError(f"{path} is a model without a recipe: say what to evaluate it on, with --tasks.")
    if isinstance(recipe.data.train, str) and recipe.data.train.partition(":")[0] == "miniworld":
        return "miniworld"
    if recipe.data.val:
        return recipe.data.val
    raise UserError("This run has no held-out data to be evaluated on by default; name it with --tasks llava:FILE.")


def _evaluate_vlm(
    path: Path,
    subject: VLMSubject,
    benchmarks: Mapping[str, Benchmark],
    settings: EvalSettings,
    progress: Progress | None,
) -> Iterator[Report]:
    """A report for each task and token count."""
    for task, benchmark in benchmarks.items():
        for answerer in subject.answerers:
            report = _benchmark(f"{task} on {path}", subject, answerer, benchmark, settings, progress)
            if subject.results.path != path:
                report.notes.append(f"The results are in {subject.results.path}.")
            yield report


def _open_benchmark(task: str, settings: EvalSettings) -> Benchmark:
    """The benchmark, scored as asked for, or as its authors do if it has no such rule."""
    benchmark = open_benchmark(task, settings.data_dir)
    return replace(benchmark, scoring=variant_of(benchmark.name, settings.scoring))


def _benchmark(
    title: str,
    subject: VLMSubject,
    answerer: Answerer,
    benchmark: Benchmark,
    settings: EvalSettings,
    progress: Progress | None,
) -> Report:
    with shown(progress, min(len(benchmark.samples), settings.limit or len(benchmark.samples)), title) as report:
        outcome = run_benchmark(
            answerer,
            benchmark,
            {"llm": subject.llm, "seed": subject.seed},
            limit=settings.limit,
            records_path=subject.records_path(benchmark.name, answerer),
            identity=subject.identity,
            on_progress=report,
        )
    count, compressor = answerer.facts["visual_tokens"], answerer.facts["compressor"]
    shown_in = f"{count or 'a varying number of'} visual tokens" + (f" ({compressor})" if compressor else "")
    columns, table = score_table(outcome.rows)
    notes = _notes(outcome, benchmark, settings)
    return Report(f"{title}: {subject.llm}, {shown_in}", outcome.rows, columns, table, notes)


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
