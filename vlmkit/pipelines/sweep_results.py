"""What a sweep found: rows of its runs, means over seeds, and for each series a law and a picture of its frontier."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlmkit import registry
from vlmkit.config import SweepRecipe, VLMRecipe
from vlmkit.errors import UserError
from vlmkit.pipelines.grid import scores
from vlmkit.pipelines.score_tables import Table, scores_over_seeds
from vlmkit.runs import ResultRow, replacing, result_columns, write_atomically
from vlmkit.scaling.bootstrap import Interval, residual_bootstrap
from vlmkit.scaling.frontier import FamilyAnswer, Frontier, find_frontier
from vlmkit.scaling.laws import FloatArray
from vlmkit.scaling.measurements import load_measurements
from vlmkit.scaling.plot import plot_frontier

_DRAWS = 400
TABLE, REPORT = "results.csv", "sweep.md"


def series_of(recipe: VLMRecipe) -> str:
    """What one law describes: a compressor, with what it is told of the question where it can be told."""
    compressor = recipe.compressor
    told = registry.compressor(compressor.name).conditioned
    return f"{compressor.name}, query {compressor.query}" if told else compressor.name


def rows_of(run: Path, eval_samples: int | None) -> list[ResultRow]:
    """The scores by family that the sweep's own evaluation of a run has given so far."""
    return [row for row in scores(run) if row.llm and row.family and row.limit == eval_samples]


def unevaluated(run: Path, recipe: VLMRecipe, eval_samples: int | None) -> tuple[int, ...]:
    """The token counts at which a run of the sweep has no scores yet: none if it is done."""
    done = {row.visual_tokens for row in rows_of(run, eval_samples)}
    return tuple(count for count in recipe.compressor.counts if count not in done)


@dataclass(frozen=True)
class SweepResults:
    """The runs of a sweep in ``out`` (name -> recipe), finished or not, with the rows of those that have scores."""

    recipe: SweepRecipe
    out: Path
    cells: Mapping[str, VLMRecipe]

    @cached_property
    def rows(self) -> dict[str, list[ResultRow]]:
        """The rows of every run, by name; none for one without scores."""
        return {name: rows_of(self.out / name, self.recipe.eval_samples) for name in sorted(self.cells)}

    @property
    def series(self) -> list[str]:
        return list(dict.fromkeys(map(series_of, self.cells.values())))

    def of(self, series: str) -> dict[str, VLMRecipe]:
        """The runs of a series."""
        return {name: cell for name, cell in self.cells.items() if series_of(cell) == series}

    def tables(self) -> list[Table]:
        """For each series, the score of every language model at every token count, by family: mean over seeds ± its
        standard error."""
        return [self._table(series) for series in sorted(self.series)]

    def _table(self, series: str) -> Table:
        values: dict[tuple[str, int], dict[str, list[float]]] = {}
        families: dict[str, None] = {}
        for name, cell in self.of(series).items():
            for count in cell.compressor.counts:
                by_family = values.setdefault((cell.llm.name, count), defaultdict(list))
                for row in self.rows[name]:
                    if row.visual_tokens == count:
                        families[row.family] = None
                        by_family[row.family].append(row.value)
        order = {llm: index for index, llm in enumerate(self.recipe.llms)}
        lines = [
            (llm, str(count), *scores_over_seeds([found[family] for family in families], len(self.recipe.seeds)))
            for (llm, count), found in sorted(values.items(), key=lambda item: (order[item[0][0]], item[0][1]))
        ]
        return Table(series, ["LLM", "tokens", *families, "seeds"], lines)

    def write(self) -> None:
        """Write ``results.csv`` and ``sweep.md`` with what is there so far."""
        write_atomically(self.out / TABLE, self._csv())
        write_atomically(self.out / REPORT, self._markdown([]))

    def write_laws(self) -> list[Law]:
        """Fit a law to each series, draw its frontier, and add the laws to ``sweep.md``; for when all runs are done."""
        laws = [self._law(series) for series in sorted(self.series)]
        for law in laws:
            law.draw()
        write_atomically(self.out / REPORT, self._markdown(laws))
        return laws

    def _law(self, series: str) -> Law:
        several = len(self.series) > 1
        picture = self.out / (
            f"frontier-{series.replace(', ', '-').replace(' ', '-')}.png" if several else "frontier.png"
        )
        try:
            measurements = load_measurements([self.out / name for name in sorted(self.of(series))])
            return Law(series, picture, find_frontier(measurements, text_tokens=self.recipe.text_tokens), "")
        except UserError as error:
            return Law(series, picture, None, str(error))

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["run", *result_columns()], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"run": name, **row.as_dict()} for name, rows in self.rows.items() for row in rows)
        return text.getvalue()

    def _markdown(self, laws: list[Law]) -> str:
        parts = ["Scores, higher is better: mean over seeds ± its standard error."]
        parts += [f"`{table.title}`\n\n{table.markdown()}" for table in self.tables()]
        for law in laws:
            parts += [f"Law of `{law.series}`: error = A N^-alpha V^-beta + D", *law.paragraphs()]
        parts += ["Settings:", f"```yaml\n{self.recipe.to_yaml()}```"]
        return "\n\n".join(parts) + "\n"


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

    def table(self) -> Table:
        """Exponents by family with 95 % intervals (residual bootstrap), and V*: the number of visual tokens that would
        be best if LLMs came in every size."""
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
        yield "In brackets: 95 % intervals. V* is the best number of visual tokens if LLMs came in every size."
        for answer in self.frontier.families:
            yield from (f"{answer.family}: {note}" for note in answer.notes)
        yield from (f"No law for {family}: {reason}" for family, reason in self.frontier.unfitted.items())

    def paragraphs(self) -> Iterator[str]:
        """The same for Markdown."""
        if self.frontier is not None:
            yield self.table().markdown()
            yield f"![Error against cost]({self.picture.name})"
        yield from self.notes()


def _between(value: float | FloatArray, interval: Interval | None) -> str:
    return f"{float(value):.3g}" + (f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else "")
