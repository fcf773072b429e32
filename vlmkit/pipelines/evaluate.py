"""Evaluation of models: each kind has its tasks; rows go to the run's results.jsonl, or to one of the model's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import Benchmark, open_benchmark
from vlmkit.evals.generation import Answerer
from vlmkit.evals.progress import shown
from vlmkit.evals.runner import run_benchmark
from vlmkit.pipelines.evaluate_tower import evaluate_tower
from vlmkit.pipelines.reports import EvalSettings, Report
from vlmkit.pipelines.tower_subject import RANDOM_TOWER
from vlmkit.pipelines.vlm_subject import VLMSubject, is_checkpoint, open_checkpoint, open_run
from vlmkit.runs import RunDirectory
from vlmkit.training.metrics import Progress

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
        benchmarks = {task: open_benchmark(task) for task in tasks or [_default_task(path, recipe)]}
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
        run.append_results(report.rows)
        reports.append(report)
    return reports


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
            on_progress=report,
        )
    notes = [f"{outcome.num_bad} samples could not be read and are not counted."] if outcome.num_bad else []
    if settings.limit and settings.limit < len(benchmark.samples):
        notes.append(f"The first {settings.limit} of {len(benchmark.samples)} samples (the limit).")
    count, compressor = answerer.facts["visual_tokens"], answerer.facts["compressor"]
    shown_in = f"{count or 'a varying number of'} visual tokens" + (f" ({compressor})" if compressor else "")
    return Report(
        f"{title}: {subject.llm}, {shown_in}",
        outcome.rows,
        ["family", outcome.rows[0].metric, "stderr", "questions"],
        [(row.family, f"{row.value:.3f}", f"{row.stderr:.3f}", row.num_samples) for row in outcome.rows],
        notes,
    )
