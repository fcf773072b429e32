"""One picture of a label report: labels per caption, and the tokens that are common, heavy and light."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vlmkit.evals.label_report import LabelReport, TokenRow

# Of Okabe and Ito's colour-blind-safe palette.
_BLUE, _ORANGE = "#0072B2", "#E69F00"
_BARS = 16
_FONT = "DejaVu Sans"
"""Comes with matplotlib, so that the picture is the same everywhere."""


def draw_labels(report: LabelReport, path: Path) -> None:
    """Draw the report into ``path``, a PNG."""
    # The figure class draws without pyplot, whose global state and window system are not needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3 if report.weights_low else 2
    figure = Figure(figsize=(4.6 * columns, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns)
    _draw_histogram(panels[0], report)
    frequent = report.frequent[:_BARS]
    _draw_bars(panels[1], frequent, [100 * row.captions for row in frequent], [_BLUE] * len(frequent))
    panels[1].set(title="most frequent labels", xlabel="captions that hold it, %")
    if report.weights_low:
        heavy, light = report.weights_high[: _BARS // 2], report.weights_low[: _BARS // 2][::-1]
        colours = [_ORANGE] * len(heavy) + [_BLUE] * len(light)
        _draw_bars(panels[2], heavy + light, [row.weight or 0.0 for row in heavy + light], colours)
        panels[2].set(
            title=f"heaviest (in {report.heavy_captions}+ captions) and lightest",
            xlabel="weight (inverse document frequency)",
        )
    figure.suptitle(
        f"{report.captions} captions, tokenizer {report.settings.tokenizer}: {report.truncated:.1%} cut at "
        f"{report.settings.context_length} tokens, {report.tokens_labelled:.1%} of their tokens are labels, "
        f"{report.classes_seen:.1%} of {report.num_classes} classes seen",
        fontsize=11,
    )
    figure.savefig(path, dpi=120, format="png")


def _draw_histogram(axes: Axes, report: LabelReport) -> None:
    axes.bar(range(len(report.labels_histogram)), report.labels_histogram, width=1.0, color=_BLUE)
    axes.axvline(report.labels_mean, color=_ORANGE, label=f"mean {report.labels_mean:.1f}")
    axes.set(title="labels per caption", xlabel="distinct labels", ylabel="captions")
    axes.legend(fontsize=9)


def _draw_bars(axes: Axes, rows: Sequence[TokenRow], lengths: Sequence[float], colours: Sequence[str]) -> None:
    axes.barh(range(len(rows)), lengths, color=colours)
    axes.set_yticks(range(len(rows)), [_drawable(row.text) for row in rows], fontsize=9, parse_math=False)
    axes.invert_yaxis()


def _drawable(text: str) -> str:
    """The text with the characters that the font lacks written as escapes."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(_FONT))  # matplotlib keeps both answers
    return "".join(
        character if font.get_char_index(ord(character)) else character.encode("unicode_escape").decode()
        for character in text
    )
