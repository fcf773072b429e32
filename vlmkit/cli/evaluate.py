"""``vlmkit eval``: scores of a tower or a VLM, appended to the run's results.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmkit.cli.options import Device, DeviceOption, JsonOption, parse_counts
from vlmkit.cli.output import print_json, print_table
from vlmkit.cli.prepare import prepare_benchmarks
from vlmkit.errors import UserError


def evaluate(
    runs: Annotated[list[Path] | None, typer.Argument(help="Finished run directories.")] = None,
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
    as_json: JsonOption = False,
) -> None:
    """Score runs: for towers a linear probe unless other tasks are named, each beside a random tower; for VLMs exact
    match by family."""
    if prepare:
        prepare_benchmarks(prepare, data_dir, revision, as_json)
        return
    if not runs:
        raise UserError("Nothing to evaluate: give finished run directories, or benchmarks to --prepare.")
    from vlmkit.cli.progress import RichProgress
    from vlmkit.pipelines import evaluate as pipeline

    counts = tuple(parse_counts(tokens)) if tokens else ()
    settings = pipeline.EvalSettings(train_data, test_data, limit, batch_size, device.value, counts, data_dir)
    names = [name.strip() for given in tasks or [] for name in given.split(",") if name.strip()]
    reports = {str(run): pipeline.evaluate(run, names, settings, RichProgress()) for run in runs}
    if as_json:
        print_json(
            {run: [row.as_dict() for report in of_run for row in report.rows] for run, of_run in reports.items()}
        )
        return
    for of_run in reports.values():
        for report in of_run:
            print_table(report.title, report.columns, report.table, report.notes)
