"""``vlmkit frontier``: which LLM and how many visual tokens to deploy at a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.cli.options import JsonOption
from vlmkit.cli.output import print_json, print_note, print_table

if TYPE_CHECKING:
    from vlmkit.scaling.frontier import FamilyAnswer, Frontier


def frontier(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Own measurements: run directories, directories of runs, CSV or JSONL. Default: published tables."
        ),
    ] = None,
    measurements: Annotated[
        list[Path] | None, typer.Option("--measurements", "-m", help="The same as the RUNS argument.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="FLOPs for one answer: 5e12, 5TFLOPs, 800GFLOPs. Without it: a range of budgets.")
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens beside the image; 0 where they are cached.")] = 50,
    llms: Annotated[
        str | None,
        typer.Option(
            help="Candidate LLMs, comma-separated: 7b,14b,32b. Default: the measured ones (published: to 14B)."
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Candidate visual token counts: 1,16,64. Default: the measured ones.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Choices shown for each family.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="Draw error against cost into this .png, .svg or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a scaling law to measurements and choose the LLM and the number of visual tokens for a budget."""
    from vlmkit.scaling.budgets import Unit, parse_budget
    from vlmkit.scaling.frontier import find_frontier
    from vlmkit.scaling.measurements import load_measurements

    paths = [*(measurements or []), *(runs or [])]
    answer = find_frontier(
        load_measurements(paths) if paths else None,
        budget=None if budget is None else parse_budget(budget, [Unit.flops]).amount,
        text_tokens=text_tokens,
        llms=_names(llms),
        tokens=_counts(tokens),
    )
    if plot:
        from vlmkit.scaling.plot import plot_frontier

        plot_frontier(answer, plot)
    if as_json:
        print_json(answer.to_json(top))
    elif answer.budget is None:
        _print_range(answer)
    else:
        for family in answer.families:
            _print_family(family, answer, top)
    for family_name, reason in answer.unfitted.items():
        print_note(f"No law for {family_name}: {reason}")
    if plot:
        print_note(f"Picture: {plot}")


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",") if name.strip()] if text else None


def _counts(text: str | None) -> list[int] | None:
    from vlmkit.errors import UserError

    try:
        return [int(count) for count in text.split(",")] if text else None
    except ValueError:
        raise UserError(f"--tokens takes whole numbers separated by commas, such as 1,16,64, not {text!r}.") from None


def _print_family(answer: FamilyAnswer, frontier: Frontier, top: int) -> None:
    from vlmkit.scaling.budgets import format_flops, format_params

    best = answer.best
    print_table(
        f"{answer.family} within {format_flops(frontier.budget or 0)}: "
        f"{best.llm.name} with {best.visual_tokens} visual tokens",
        ["", "LLM", "parameters", "visual tokens", "predicted error", "cost"],
        [
            (
                "best" if choice is best else "",
                choice.llm.name,
                format_params(choice.llm.num_params),
                choice.visual_tokens,
                f"{choice.error:.4f}",
                format_flops(choice.flops),
            )
            for choice in answer.candidates[:top]
        ],
        [_law(answer, frontier.text_tokens), *answer.notes],
    )


def _print_range(frontier: Frontier) -> None:
    from vlmkit.scaling.budgets import format_flops

    rows = []
    for budget in frontier.budgets():
        choices = [answer.best_within(budget) for answer in frontier.families]
        cells = [f"{c.llm.name} x {c.visual_tokens} ({c.error:.3f})" if c else "" for c in choices]
        rows.append([format_flops(budget), *cells])
    families = frontier.families
    shared = [note for note in families[0].notes if all(note in answer.notes for answer in families)]
    notes = ["A choice is LLM x visual tokens (predicted error)."]
    for answer in families:
        own = [note for note in answer.notes if note not in shared]
        notes += [f"{answer.family}: {line}" for line in [_law(answer, frontier.text_tokens), *own]]
    print_table(
        "What to deploy as the budget grows", ["budget", *(a.family for a in families)], rows, [*notes, *shared]
    )


def _law(answer: FamilyAnswer, text_tokens: int) -> str:
    law, fit = answer.fit.law, answer.fit
    return (
        f"error = {law.formula()} (N in billions), within "
        f"{fit.max_relative_error:.1%} of {fit.num_points} points; if LLMs came in every size, "
        f"{answer.optimal_visual_tokens:.3g} visual tokens would be best at any budget (text tokens: {text_tokens})."
    )
