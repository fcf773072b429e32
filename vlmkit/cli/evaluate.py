"""``vlmkit eval``: scores of a tower or a VLM, appended to the run's results.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmkit.cli.options import Device, DeviceOption, Format, FormatOption, JsonOption, Scoring, parse_counts
from vlmkit.cli.prepare import prepare_benchmarks
from vlmkit.cli.scores import print_comparison, print_reports, print_scores


def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Finished run directories; VLMs of transformers (directories, or hub ids), with --tasks."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            "-t",
            help="Separated by commas, or repeated. Towers: linear_probe, linear_probe_mae, few_shot, knn, zero_shot, "
            "finetune, caption, label_report. VLMs: miniworld, llava:FILE, and the others of `vlmkit models`.",
        ),
    ] = None,
    train_data: Annotated[
        str | None,
        typer.Option(
            "--train-data",
            help="Towers: labelled images to fit a probe on, folder:DIR or miniworld:train (caption: with captions).",
        ),
    ] = None,
    test_data: Annotated[
        str | None, typer.Option("--test-data", help="Towers: images of the same kind that the probe is scored on.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Images at most: towers, of the training and of the test set, evenly spread; VLMs, of a benchmark, "
            "its first.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Questions, or images, of one pass.")] = 128,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", help="VLMs: visual tokens, of those the model was trained for; several give rows for each."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir", help="VLMs: where the data of benchmarks lie, DIR/NAME/...; by default in the cache."
        ),
    ] = None,
    scoring: Annotated[
        Scoring, typer.Option("--scoring", help="VLMs: the benchmark's own rule, or lmms-eval's where it differs.")
    ] = Scoring.official,
    compare: Annotated[
        bool, typer.Option("--compare", help="Evaluate nothing: print what the runs have scored beside each other.")
    ] = False,
    score_file: Annotated[
        Path | None,
        typer.Option(
            "--score-file",
            help="Score no run but predictions: a JSON list (.jsonl: lines) of objects with prediction, references "
            "and, where the benchmark needs them, choices, category, question_id. Prints a JSON list in that order.",
        ),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="Whose rule scores the predictions of --score-file.")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="With --score-file: print the benchmark's numbers over all cases instead.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where the results of a model go that is no run; default: a directory of its name in runs/."
        ),
    ] = None,
    prepare: Annotated[
        str | None,
        typer.Option(
            "--prepare",
            help="Evaluate nothing: fetch the data of these benchmarks, separated by commas, and pin their revision.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="With --prepare: the branch, tag or commit of the data set.")
    ] = None,
    device: DeviceOption = Device.auto,
    output: FormatOption = Format.table,
    as_json: JsonOption = False,
) -> None:
    """Score runs: for towers a linear probe unless other tasks are named, each beside a random tower; for VLMs the
    benchmarks named. Or score predictions (--score-file), compare runs (--compare), or fetch benchmarks (--prepare)."""
    from vlmkit.errors import UserError

    form = Format.json if as_json else output
    if prepare:
        if runs or score_file or compare:
            raise UserError("--prepare fetches data and scores nothing; give it alone, with --data-dir and --revision.")
        prepare_benchmarks(prepare, data_dir, revision, form is Format.json)
        return
    if revision:
        raise UserError("--revision belongs to --prepare; evaluation uses the revision that was prepared.")
    if score_file:
        if runs or compare or not benchmark:
            raise UserError("--score-file scores a file and no run; give it alone, with --benchmark NAME.")
        print_scores(score_file, benchmark, scoring, summary)
        return
    if benchmark or summary:
        raise UserError("--benchmark and --summary belong to --score-file; name the benchmarks of a run with --tasks.")
    if not runs:
        raise UserError("Nothing to evaluate: give finished run directories, or predictions with --score-file.")
    if compare:
        print_comparison(runs, form)
        return
    from vlmkit.cli.progress import RichProgress
    from vlmkit.pipelines.evaluation import evaluate as pipeline

    counts = tuple(parse_counts(tokens)) if tokens else ()
    settings = pipeline.EvalSettings(
        train_data=train_data,
        test_data=test_data,
        limit=limit,
        batch_size=batch_size,
        device=device.value,
        tokens=counts,
        scoring=scoring.value,
        out=out,
        data_dir=data_dir,
    )
    names = [name.strip() for given in tasks or [] for name in given.split(",") if name.strip()]
    reports = {str(run): pipeline.evaluate(run, names, settings, RichProgress()) for run in runs}
    print_reports(reports, form)
