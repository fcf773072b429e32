"""One picture of the answer: error against cost, a curve for each LLM, the frontier, the choice at the budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmkit.errors import UserError
from vlmkit.scaling.budgets import format_flops
from vlmkit.scaling.flops import prefill_flops
from vlmkit.scaling.frontier import FamilyAnswer, Frontier
from vlmkit.scaling.measurements import SizedLLM

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 4
_SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colour-blind-safe palette without yellow, which vanishes on paper; markers repeat the distinction.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_frontier(frontier: Frontier, path: str | Path) -> None:
    """Draw the first four families, a panel each, into ``path`` (.png, .svg or .pdf; UserError on others)."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise UserError(f"The picture {path} must end in one of {', '.join(_SUFFIXES)}.")
    # The figure class draws without pyplot, whose global state and window system are not needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    answers = frontier.families[:MAX_PANELS]
    columns = len(answers) if len(answers) < 4 else 2
    rows = math.ceil(len(answers) / columns)
    figure = Figure(figsize=(5.6 * columns, 5.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, answer in zip(figure.subplots(rows, columns, squeeze=False).flat, answers, strict=True):
        _draw_family(axes, answer, frontier)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda flops, _: format_flops(flops).removesuffix("FLOPs")))
        axes.xaxis.set_minor_locator(NullLocator())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _draw_family(axes: Axes, answer: FamilyAnswer, frontier: Frontier) -> None:
    law, text_tokens = answer.fit.law, frontier.text_tokens
    counts = np.array([choice.visual_tokens for choice in answer.considered], dtype=np.float64)
    along = np.geomspace(min(counts.min(), answer.fit.tokens[0]), max(counts.max(), answer.fit.tokens[1]), 100)
    measured = {row.llm for row in answer.measurements}
    llms = sorted(measured | {choice.llm for choice in answer.considered}, key=lambda llm: llm.billions)
    for index, llm in enumerate(llms):
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        cost = prefill_flops(llm.billions, along, text_tokens)
        style = "-" if llm in measured else "--"
        label = llm.name if llm in measured else f"{llm.name} (predicted)"
        axes.plot(cost, law.predict(llm.billions, along), style, color=colour, linewidth=1.4)
        points = _points(answer, llm)
        face = colour if llm in measured else "white"
        axes.plot(
            [prefill_flops(llm.billions, tokens, text_tokens) for tokens, _ in points],
            [error for _, error in points],
            linestyle="none",
            marker=marker,
            markersize=6,
            color=colour,
            markerfacecolor=face,
            label=label,
        )
    _draw_frontier(axes, answer)
    _draw_choice(axes, answer, frontier)
    axes.set_title(f"{answer.family} (law within {answer.fit.max_relative_error:.1%} of every point)", fontsize=11)
    axes.set_xlabel(f"LLM FLOPs to read one image and {text_tokens} text tokens")
    axes.set_ylabel("error (1 - score)")
    axes.grid(True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    title = f"along a curve: {along[0]:.0f} to {along[-1]:.0f} visual tokens"
    # Below the axes, where it covers no point whatever the measurements are.
    axes.legend(title=title, fontsize=8, title_fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _points(answer: FamilyAnswer, llm: SizedLLM) -> list[tuple[int, float]]:
    """(visual tokens, error): as measured, or as predicted for the candidates of an LLM that was not measured."""
    measured = [(row.visual_tokens, row.error) for row in answer.measurements if row.llm == llm]
    return measured or [(choice.visual_tokens, choice.error) for choice in answer.considered if choice.llm == llm]


def _draw_frontier(axes: Axes, answer: FamilyAnswer) -> None:
    by_cost = sorted(answer.considered, key=lambda choice: choice.flops)
    best = np.minimum.accumulate([choice.error for choice in by_cost])
    cost = [choice.flops for choice in by_cost]
    axes.step(
        cost, best, where="post", color="0.6", linewidth=4, alpha=0.5, zorder=1, label="best predicted at each cost"
    )


def _draw_choice(axes: Axes, answer: FamilyAnswer, frontier: Frontier) -> None:
    if frontier.budget is None:
        return
    best = answer.best
    axes.axvline(frontier.budget, color="black", linestyle=":", label=f"budget {format_flops(frontier.budget)}")
    axes.plot(
        best.flops,
        best.error,
        linestyle="none",
        marker="*",
        markersize=17,
        color="black",
        markerfacecolor="white",
        markeredgewidth=1.5,
        zorder=5,
        label=f"best: {best.llm.name}, {best.visual_tokens} tokens",
    )
