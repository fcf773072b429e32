"""The scaling law of one series of runs, in tables and sentences, and the picture of its frontier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlmkit.errors import UserError
from vlmkit.pipelines.score_tables import Table
from vlmkit.runs import replacing
from vlmkit.scaling.bootstrap import Interval, residual_bootstrap
from vlmkit.scaling.frontier import FamilyAnswer, Frontier, find_frontier
from vlmkit.scaling.laws import FloatArray
from vlmkit.scaling.measurements import load_measurements
from vlmkit.scaling.plot import plot_frontier

_DRAWS = 400


@dataclass(frozen=True)
class Law:
    """The law of a series with its frontier; without one, ``reason`` says what to measure."""

    series: str
    picture: Path
    frontier: Frontier | None
    reason: str

    def draw(self) -> None:
        """Draw the frontier into ``picture``; where there is none, no picture of an earlier one stays."""
        if self.frontier is None:
            self.picture.unlink(missing_ok=True)
            return
        with replacing(self.picture) as scratch:
            plot_frontier(self.frontier, scratch)

    @cached_property
    def table(self) -> Table:
        """The law's numbers by family, with intervals."""
        columns = ["family", "alpha", "beta", "alpha / beta", "D", "V*", "points", "largest relative miss"]
        answers = self.frontier.families if self.frontier else ()
        return Table(f"{self.series}: law", columns, [self._line(answer) for answer in answers])

    def _line(self, answer: FamilyAnswer) -> tuple[str, ...]:
        assert self.frontier is not None
        fit, law = answer.fit, answer.fit.law
        draws = residual_bootstrap(fit, _DRAWS)
        intervals = draws.parameters()
        return (
            answer.family,
            _between(law.alpha, intervals["alpha"]),
            _between(law.beta, intervals["beta"]),
            _between(law.ratio(*fit.middle), draws.ratio()),
            _between(law.floor or 0.0, intervals["D"]),
            _between(answer.optimal_visual_tokens, draws.optimal_visual_tokens(self.frontier.text_tokens, fit.tokens)),
            str(fit.num_points),
            f"{fit.max_relative_error:.1%}",
        )

    def notes(self) -> Iterator[str]:
        """What a reader must know of the law, in sentences."""
        if self.frontier is None:
            yield f"No law: {self.reason}"
            return
        yield "In brackets: 95 % intervals (residual bootstrap). V*: the best token count if LLMs came in every size."
        for answer in self.frontier.families:
            yield from (f"{answer.family}: {note}" for note in answer.notes)
        yield from (f"No law for {family}: {reason}" for family, reason in self.frontier.unfitted.items())

    def paragraphs(self) -> Iterator[str]:
        """The same for Markdown."""
        if self.frontier is not None:
            yield self.table.markdown()
            yield f"![Error against cost]({self.picture.name})"
        yield from self.notes()


def fit_series(series: str, runs: Sequence[Path], text_tokens: int, picture: Path) -> Law:
    """Fit a law to each family of evaluated runs; where none can be identified, the reason says what to measure."""
    try:
        return Law(series, picture, find_frontier(load_measurements(runs), text_tokens=text_tokens), "")
    except UserError as error:
        return Law(series, picture, None, str(error))


def _between(value: float | FloatArray, interval: Interval | None) -> str:
    return f"{float(value):.3g}" + (f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else "")
