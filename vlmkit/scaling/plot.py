"""One picture of the answers: error against cost, a curve for each LLM, the frontier, the choice at the budget."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlmkit.errors import UserError
from vlmkit.scaling.answer import Answer
from vlmkit.scaling.cost import CostModel
from vlmkit.scaling.family_law import LEVEL, FamilyLaw
from vlmkit.scaling.frontier import Frontier
from vlmkit.scaling.laws import FloatArray
from vlmkit.scaling.measurements import SizedLLM

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_PANELS = 4
_SUFFIXES = (".png", ".svg", ".pdf")
# Okabe and Ito's colour-blind-safe palette without yellow, which vanishes on paper; markers repeat the distinction.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_CURVE_POINTS = 40


def check_picture(path: str | Path) -> None:
    """Raise UserError unless ``path`` ends in .png, .svg or .pdf."""
    if Path(path).suffix not in _SUFFIXES:
        raise UserError(f"The picture {path} must end in one of {', '.join(_SUFFIXES)}.")


def plot_frontier(frontier: Frontier, path: str | Path) -> None:
    """Draw the first four answers, a panel each, into ``path`` (.png, .svg or .pdf; UserError on others)."""
    path = Path(path)
    check_picture(path)
    # The figure class draws without pyplot, whose global state and window system are not needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    answers = frontier.answers[:MAX_PANELS]
    columns = len(answers) if len(answers) < 4 else 2
    rows = math.ceil(len(answers) / columns)
    figure = Figure(figsize=(5.4 * columns, 4.6 * rows + 1), layout="constrained")
    FigureCanvasAgg(figure)
    styles = _styles(answers, frontier.question.continuous)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, answer in zip(panels, answers, strict=True):
        _draw(axes, answer, styles, frontier.question.continuous)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick(answer.pricing.primary)))
        axes.xaxis.set_minor_locator(NullLocator())
    entries = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    # Below the panels, where it covers no point whatever the measurements are.
    figure.legend(entries.values(), entries.keys(), fontsize=9, ncols=2 * columns, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _styles(answers: Sequence[Answer], continuous: bool) -> dict[SizedLLM, tuple[str, str]]:
    """Colour and marker of every LLM that is drawn, the same in all panels, by size."""
    llms = {row.llm for answer in answers for row in answer.law.rows}
    if not continuous:
        llms |= {candidate.llm for answer in answers for candidate in answer.considered}
    ordered = sorted(llms, key=lambda llm: (llm.billions, llm.name))
    return {llm: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, llm in enumerate(ordered)}


def _tick(model: CostModel) -> Callable[[float, float], str]:
    """FLOPs by their prefix alone, which leaves room for the numbers: the label below names the unit."""
    return lambda cost, _: model.format(cost).replace(" ", "").removesuffix("FLOPs")


def _draw(axes: Axes, answer: Answer, styles: Mapping[SizedLLM, tuple[str, str]], continuous: bool) -> None:
    measured = _measured(answer)
    offered = {candidate.llm for candidate in answer.considered}
    for llm, style in styles.items():
        points = [(cost, error) for of, cost, error in measured if of == llm]
        if points or llm in offered:
            _draw_llm(axes, answer, llm, points, *style)
    _draw_frontier(axes, answer, continuous)
    title = answer.name
    if answer.pricing.budgets or answer.target is not None:
        _draw_choice(axes, answer)
        title += f": {answer.best.llm.name}, {answer.best.visual_tokens} tokens"
    axes.set_title(title, size=11, weight="bold")
    axes.set_xlabel(textwrap.fill(answer.pricing.primary.describe(), 72), size=8.5)
    axes.set_ylabel("error (1 - score)")
    axes.grid(True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if isinstance(answer.law, FamilyLaw):
        fit = answer.law.fit
        quality = f"law within {fit.max_relative_error:.1%} of every point" if fit.describes else "law does not fit"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(0.98, 0.96, quality, transform=axes.transAxes, ha="right", va="top", size=9, color="0.35", bbox=box)


def _measured(answer: Answer) -> list[tuple[SizedLLM, float, float]]:
    """LLM, cost and error of every measured point whose cost is known."""
    name = answer.pricing.primary.name
    found = []
    for row in answer.law.rows:
        candidate = answer.pricing.try_price(row.llm, row.visual_tokens)
        if candidate is not None:
            found.append((row.llm, candidate.costs[name], row.error))
    return found


def _draw_llm(
    axes: Axes, answer: Answer, llm: SizedLLM, points: Sequence[tuple[float, float]], colour: str, marker: str
) -> None:
    """The law along the visual tokens of one LLM with its interval, and what was measured or, hollow, is offered."""
    law, pricing = answer.law, answer.pricing
    offered = [candidate for candidate in answer.considered if candidate.llm == llm]
    counts = [candidate.visual_tokens for candidate in offered] or law.counts
    along = sorted({round(count) for count in np.geomspace(min(counts), max(counts), _CURVE_POINTS)})
    priced = [candidate for count in along if (candidate := pricing.try_price(llm, count))]
    name = pricing.primary.name
    V = np.array([candidate.visual_tokens for candidate in priced], dtype=np.float64)
    N = np.full_like(V, llm.billions)
    cost = [candidate.costs[name] for candidate in priced]
    axes.plot(cost, law.predict(N, V), "-" if points else "--", color=colour, linewidth=1.4)
    drawn = law.draws(N, V)
    if drawn is not None:
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        axes.fill_between(cost, low, high, color=colour, alpha=0.18, linewidth=0)
    shown = points or [
        (candidate.costs[name], float(law.predict(np.array(llm.billions), np.array(candidate.visual_tokens))))
        for candidate in offered
    ]
    axes.plot(
        [at for at, _ in shown],
        [error for _, error in shown],
        linestyle="none",
        marker=marker,
        markersize=6,
        color=colour,
        markerfacecolor=colour if points else "white",
        label=f"{llm.name} ({'measured' if points else 'predicted'})",
    )


def _draw_frontier(axes: Axes, answer: Answer, continuous: bool) -> None:
    if continuous:
        cost, best = _every_size(answer)
        axes.plot(cost, best, color="0.6", linewidth=4, alpha=0.5, zorder=1, label="best predicted, every size")
        return
    by_cost = sorted(answer.considered, key=lambda candidate: candidate.costs[answer.pricing.primary.name])
    N = np.array([candidate.llm.billions for candidate in by_cost])
    V = np.array([candidate.visual_tokens for candidate in by_cost], dtype=np.float64)
    best = np.minimum.accumulate(answer.law.predict(N, V))
    axes.step(
        [candidate.costs[answer.pricing.primary.name] for candidate in by_cost],
        best,
        where="post",
        color="0.6",
        linewidth=4,
        alpha=0.5,
        zorder=1,
        label="best predicted at each cost",
    )


def _every_size(answer: Answer) -> tuple[FloatArray, FloatArray]:
    """Costs 2 N (Q + V) around the budget, and the least error with an LLM of any size and any V."""
    counts = [candidate.visual_tokens for candidate in answer.considered]
    cost = (answer.pricing.budget or 1.0) * np.geomspace(0.03, 3, _CURVE_POINTS)
    V = np.geomspace(min(counts), max(counts), _CURVE_POINTS)[:, None]
    N = cost / (2e9 * (answer.pricing.workload.prefilled_text + V))
    return cost, answer.law.predict(N, V).min(0)


def _draw_choice(axes: Axes, answer: Answer) -> None:
    best, pricing = answer.best, answer.pricing
    if pricing.budget is not None:
        label = f"budget {pricing.primary.format(pricing.budget)}"
        axes.axvline(pricing.budget, color="black", linestyle=":", label=label)
    if answer.target is not None:
        axes.axhline(answer.target, color="black", linestyle="-.", label=f"error to reach: {answer.target:g}")
    ends = best.interval or (best.error, best.error)
    axes.errorbar(
        best.costs[pricing.primary.name],
        best.error,
        yerr=[[max(0.0, best.error - ends[0])], [max(0.0, ends[1] - best.error)]],
        linestyle="none",
        marker="*",
        markersize=17,
        color="black",
        markerfacecolor="white",
        markeredgewidth=1.5,
        capsize=4,
        zorder=5,
        label="the choice, with its interval",
    )
