"""``vlmkit frontier``: which LLM and how many visual tokens to deploy at a budget."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmkit.cli.options import Format, FormatOption, JsonOption, parse_counts
from vlmkit.cli.output import print_note

if TYPE_CHECKING:
    from vlmkit.scaling.candidates import Pricing
    from vlmkit.scaling.frontier import Question


class Cost(str, Enum):
    """What is counted."""

    llm = "llm"
    full = "full"
    latency = "latency"
    memory = "memory"


class Law(str, Enum):
    """The form of the law."""

    product = "product"
    additive = "additive"
    loglinear = "log-linear"
    auto = "auto"


class Loss(str, Enum):
    """What a fit minimises."""

    squared = "squared"
    huber = "huber"


def _option(panel: str, text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **settings)


def frontier(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Own measurements: run directories, directories of runs, CSV or JSONL. Default: published tables."
        ),
    ] = None,
    measurements: Annotated[
        list[Path] | None, _option("Measurements and law", "The same as the RUNS argument.", "--measurements", "-m")
    ] = None,
    columns: Annotated[
        str | None, _option("Measurements and law", "Columns of own tables: score=accuracy,llm=model.")
    ] = None,
    law: Annotated[
        Law, _option("Measurements and law", "Form of the law; auto: the one with the lowest AICc.")
    ] = Law.product,
    loss: Annotated[
        Loss,
        _option("Measurements and law", "huber: fit again by Huber's loss of log residuals, and say what it changes."),
    ] = Loss.squared,
    budget: Annotated[
        list[str] | None,
        _option("Cost", "FLOPs (5e12, 5TFLOPs), time (50ms) or memory (24GB); several hold at once. None: a range."),
    ] = None,
    cost: Annotated[
        Cost | None,
        _option("Cost", "llm: 2N(Q + V). full: all FLOPs. Default: of the first budget's unit, FLOPs: llm."),
    ] = None,
    latency_table: Annotated[
        Path | None,
        _option(
            "Cost",
            "Measured times: a file of vlmkit bench, or nvidia-h200, which is shipped. Default, where milliseconds are "
            "asked for: latency.json.",
        ),
    ] = None,
    text_tokens: Annotated[
        int | None, _option("Cost", "Text tokens beside the image. Default: 50, or the latency table's.")
    ] = None,
    cached_text: Annotated[
        bool, _option("Cost", "The text was read before and costs no prefill.", "--cached-text")
    ] = False,
    new_tokens: Annotated[int | None, _option("Cost", "Tokens of the answer. Default: 1, or the table's.")] = None,
    batch_size: Annotated[int | None, _option("Cost", "Answers at a time. Default: 1, or the table's.")] = None,
    tower: Annotated[str, _option("Cost", "Vision tower, for costs full and memory.")] = "ViT-L-14-336",
    image_size: Annotated[int | None, _option("Cost", "Image side in pixels. Default: the tower's.")] = None,
    compressor: Annotated[str | None, _option("Cost", "Default: the one that was measured, or avgpool.")] = None,
    llms: Annotated[
        str | None,
        _option(
            "Question",
            "Candidates: 7b,14b,qwen2.5 (a family's every size). Default: those measured; published: to 14B.",
        ),
    ] = None,
    tokens: Annotated[
        str | None, _option("Question", "Candidate visual token counts: 1,16,64. Default: the measured ones.")
    ] = None,
    continuous: Annotated[
        bool, _option("Question", "Candidates of every size that spends the budget.", "--continuous")
    ] = False,
    compare: Annotated[str | None, _option("Question", "Only these choices, side by side: 7b:576,14b:64.")] = None,
    mix: Annotated[str | None, _option("Question", "Also answer for a mean: reasoning=0.7,ocr=0.3.")] = None,
    target_error: Annotated[
        str | None, _option("Question", "The cheapest choice predicted to reach 0.5, or reasoning=0.5,mix=0.6.")
    ] = None,
    top: Annotated[int, _option("Output", "Choices shown for each answer.", min=1)] = 5,
    plot: Annotated[Path | None, _option("Output", "Draw error against cost into this .png, .svg or .pdf.")] = None,
    html: Annotated[
        Path | None,
        _option("Output", "Write a page into this .html, on which budget, costs and candidates can be moved."),
    ] = None,
    output: FormatOption = Format.table,
    as_json: JsonOption = False,
) -> None:
    """Fit a scaling law to measurements and choose the LLM and the number of visual tokens for a budget."""
    from vlmkit.cli.frontier_tables import print_frontier
    from vlmkit.errors import UserError
    from vlmkit.scaling.frontier import find_frontier
    from vlmkit.scaling.measurements import load_measurements, load_published

    paths = [*(measurements or []), *(runs or [])]
    named = dict(_pairs("--columns", columns, "score=accuracy,llm=model"))
    if named and not paths:
        raise UserError("--columns names the columns of own tables: give these too.")
    pricing = _pricing(
        budget or [],
        cost and cost.value,
        latency_table,
        {"text_tokens": text_tokens, "new_tokens": new_tokens, "cached_text": cached_text, "batch_size": batch_size},
        (tower, compressor, image_size),
    )
    question = _question(pricing, llms, tokens, continuous, compare, mix, target_error)
    if plot:
        # Before anything is printed: matplotlib is slow, and a wrong suffix must not come after the answer.
        from vlmkit.scaling.plot import check_picture, plot_frontier

        check_picture(plot)
    if html:
        from vlmkit.scaling.report import check_page, report_of, write_report

        check_page(html)
    measured = load_measurements(paths, named) if paths else None
    found = find_frontier(measured, question, law=law.value, loss=loss.value)
    if html:
        kept = {
            "--columns": columns,
            "--law": None if law is Law.product else law.value,
            "--latency-table": latency_table,
            "--tower": tower,
            "--image-size": image_size,
            "--compressor": compressor,
        }
        write_report(report_of(found, measured or load_published(), _command(paths, kept)), html)
    if plot:
        plot_frontier(found, plot)
    print_frontier(found, top, Format.json if as_json else output)
    for name, written in (("Picture", plot), ("Page", html)):
        if written:
            print_note(f"{name}: {written}")


def _command(paths: list[Path], options: dict[str, Any]) -> str:
    """The command line with these options where they are given."""
    import shlex

    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join(["vlmkit", "frontier", *map(str, paths), *given])


def _pricing(
    budgets: list[str],
    cost: Any,
    latency_table: Path | None,
    workload: dict[str, Any],
    vision: tuple[str, str | None, int | None],
) -> Pricing:
    from dataclasses import replace

    from vlmkit.scaling.budgets import Unit, parse_budgets
    from vlmkit.scaling.candidates import Pricing
    from vlmkit.scaling.cost import VisionSide
    from vlmkit.scaling.latency import LatencyTable
    from vlmkit.scaling.workload import Workload

    parsed = parse_budgets(budgets)
    in_milliseconds = cost == "latency" or Unit.milliseconds in parsed
    path = latency_table or (Path("latency.json") if in_milliseconds else None)
    table = LatencyTable.load(path) if path else None
    # A table was measured for one workload; what is not asked for is what was measured.
    given = {name: value for name, value in workload.items() if value is not None and value is not False}
    tower, compressor, image_size = vision
    return Pricing(
        parsed,
        cost,
        replace(table.workload if table else Workload(), **given),
        VisionSide.of(tower, compressor or "avgpool", image_size),
        follows_measured=compressor is None,
        table=table,
    )


def _question(
    pricing: Pricing,
    llms: str | None,
    tokens: str | None,
    continuous: bool,
    compare: str | None,
    mix: str | None,
    target_error: str | None,
) -> Question:
    from vlmkit.scaling.frontier import Question

    targets: Any = None
    if target_error is not None:
        each = "=" in target_error
        example = "0.5 or reasoning=0.5,mix=0.6"
        targets = (
            dict(_numbers("--target-error", target_error, example))
            if each
            else _number("--target-error", target_error, example)
        )
    return Question(
        pricing,
        llms=[name.strip() for name in llms.split(",") if name.strip()] if llms else None,
        tokens=parse_counts(tokens) if tokens else None,
        continuous=continuous,
        compare=[(llm, _count(count)) for llm, count in _pairs("--compare", compare, "7b:576,14b:64", ":")],
        mix=dict(_numbers("--mix", mix, "reasoning=0.7,ocr=0.3")),
        target_error=targets,
    )


def _pairs(option: str, text: str | None, example: str, sign: str = "=") -> Iterable[tuple[str, str]]:
    """``a=1,b=2`` as pairs."""
    from vlmkit.errors import UserError

    for part in text.split(",") if text else ():
        name, found, value = part.rpartition(sign)
        if not (found and name.strip() and value.strip()):
            raise UserError(f"{option} {text!r} has a part without {sign!r}; write it like {example}.")
        yield name.strip(), value.strip()


def _numbers(option: str, text: str | None, example: str) -> Iterable[tuple[str, float]]:
    for name, value in _pairs(option, text, example):
        yield name, _number(option, value, example)


def _number(option: str, text: str, example: str) -> float:
    from vlmkit.errors import UserError

    try:
        return float(text)
    except ValueError:
        raise UserError(f"{option} has {text!r} where a number belongs; write it like {example}.") from None


def _count(text: str) -> int:
    from vlmkit.errors import UserError

    if not text.isdecimal():
        raise UserError(f"--compare has {text!r} where a number of visual tokens belongs; write it like 7b:576,14b:64.")
    return int(text)
