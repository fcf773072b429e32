"""The scaling law of one series of runs, in tables and sentences, and the picture of its frontier."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlmkit.errors import UserError
from vlmkit.pipelines.grids.score_tables import Table
from vlmkit.runs import replacing
from vlmkit.scaling.answer import Answer
from vlmkit.scaling.bootstrap import Interval
from vlmkit.scaling.candidates import Pricing
from vlmkit.scaling.family_law import FamilyLaw
from vlmkit.scaling.frontier import Frontier, Question, find_frontier
from vlmkit.scaling.laws import FloatArray
from vlmkit.scaling.measurements import Measurements, load_measurements
from vlmkit.scaling.plot import plot_frontier
from vlmkit.scaling.report import report_of, write_report
from vlmkit.scaling.workload import Workload


@dataclass(frozen=True)
class Law:
    """The law of a series with its frontier; without one, ``reason`` says what to measure.

    ``picture`` (.png) and ``page`` (.html) are where the frontier is shown.
    """

    series: str
    picture: Path
    page: Path
    measurements: Measurements | None
    frontier: Frontier | None
    reason: str

    def draw(self) -> None:
        """Write picture and page; where there is no frontier, none of an earlier one stay."""
        if self.frontier is None or self.measurements is None:
            self.picture.unlink(missing_ok=True)
            self.page.unlink(missing_ok=True)
            return
        with replacing(self.picture) as scratch:
            plot_frontier(self.frontier, scratch)
        command = shlex.join(["vlmkit", "frontier", str(self.page.parent / "results.csv")])
        write_report(report_of(self.frontier, self.measurements, command), self.page)

    @cached_property
    def table(self) -> Table:
        """The law's numbers by family, with intervals."""
        columns = ["family", "alpha", "beta", "alpha / beta", "D", "V*", "points", "largest relative miss"]
        answers = self.frontier.answers if self.frontier else ()
        return Table(f"{self.series}: law", columns, [_line(answer) for answer in answers])

    def notes(self) -> Iterator[str]:
        """What a reader must know of the law, in sentences."""
        if self.frontier is None:
            yield f"No law: {self.reason}"
            return
        yield "In brackets: 95 % intervals (residual bootstrap). V*: the best token count if LLMs came in every size."
        for answer in self.frontier.answers:
            doubts = answer.law.doubts if isinstance(answer.law, FamilyLaw) else ()
            yield from (f"{answer.name}: {note}" for note in (*doubts, *answer.notes))
        yield from (f"No law for {family}: {reason}" for family, reason in self.frontier.unanswered.items())

    def paragraphs(self) -> Iterator[str]:
        """The same for Markdown."""
        if self.frontier is not None:
            yield self.table.markdown()
            yield f"![Error against cost]({self.picture.name})"
        yield from self.notes()


def fit_series(series: str, runs: Sequence[Path], text_tokens: int, picture: Path, page: Path) -> Law:
    """Fit a law to each family of evaluated runs; where none can be identified, the reason says what to measure."""
    question = Question(Pricing(workload=Workload(text_tokens=text_tokens)))
    try:
        measurements = load_measurements(runs)
        return Law(series, picture, page, measurements, find_frontier(measurements, question), "")
    except UserError as error:
        return Law(series, picture, page, None, None, str(error))


def _line(answer: Answer) -> tuple[str, ...]:
    family, optimum = answer.law, answer.optimum
    assert isinstance(family, FamilyLaw) and family.bootstrap and optimum, "a product law of enough points for one"
    fit, law, draws = family.fit, family.fit.law, family.bootstrap
    intervals = draws.parameters()
    return (
        answer.name,
        _between(law.alpha, intervals["alpha"]),
        _between(law.beta, intervals["beta"]),
        _between(law.ratio(*fit.middle), draws.ratio()),
        _between(law.floor or 0.0, intervals["D"]),
        _between(optimum.visual_tokens, optimum.interval),
        str(fit.num_points),
        f"{fit.max_relative_error:.1%}",
    )


def _between(value: float | FloatArray, interval: Interval | None) -> str:
    return f"{float(value):.3g}" + (f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else "")
