"""What a sweep found: rows of its runs, means over seeds, and for each series a law and a picture of its frontier."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlmkit import registry
from vlmkit.config import SweepRecipe, VLMRecipe
from vlmkit.pipelines.grids.grid import scores
from vlmkit.pipelines.grids.score_tables import Table, scores_over_seeds
from vlmkit.pipelines.grids.series_law import Law, fit_series
from vlmkit.runs import ResultRow, result_columns, write_atomically

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
        suffix = f"-{series.replace(', ', '-').replace(' ', '-')}" if several else ""
        runs = [self.out / name for name in sorted(self.of(series))]
        picture, page = self.out / f"frontier{suffix}.png", self.out / f"report{suffix}.html"
        return fit_series(series, runs, self.recipe.text_tokens, picture, page)

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
