"""A study of pretraining: arms that differ in a few keys, over seeds, evaluated alike."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vlmkit.config import PretrainRecipe, StudyRecipe
from vlmkit.data.sources import open_captions
from vlmkit.errors import UserError
from vlmkit.pipelines.evaluate import RANDOM_TOWER, EvalSettings, evaluate
from vlmkit.pipelines.evaluate_tower import fitting_tasks
from vlmkit.pipelines.grid import OnCell, run_grid, scores
from vlmkit.pipelines.pretrain import pretrain
from vlmkit.recipe import vary
from vlmkit.runs import RunDirectory
from vlmkit.training.metrics import Progress

EQUAL_SECONDS = "at equal seconds"
LIT = "LiT on"


@dataclass(frozen=True)
class Cell:
    """One run of the study: its arm, its seed, its recipe."""

    arm: str
    seed: int
    recipe: PretrainRecipe


@dataclass(frozen=True)
class Score:
    """Mean accuracy of an arm over its seeds, and the standard error of that mean (None with a single seed)."""

    mean: float
    stderr: float | None
    num_seeds: int

    @classmethod
    def of(cls, values: list[float]) -> Score:
        spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        return cls(statistics.fmean(values), spread, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" +- {self.stderr:.3f}" if self.stderr is not None else "")


def cells(recipe: StudyRecipe) -> dict[str, Cell]:
    """The runs at equal data, by the name of their directory."""
    return _cells(recipe, {arm: dict(changes) for arm, changes in recipe.arms.items()})


def equal_seconds_cells(recipe: StudyRecipe, out: Path) -> dict[str, Cell]:
    """The runs at equal seconds, from the rates that the finished runs at equal data have measured.

    An arm gets the samples of its reference times the ratio of their rates (median over logged steps and seeds), so its
    learning-rate schedule ends when its time does.
    """
    arms = {}
    for arm, reference in recipe.equal_seconds.items():
        ratio = _rate(recipe, out, arm) / _rate(recipe, out, reference)
        run = cells(recipe)[_name(reference, recipe.seeds[0])].recipe
        steps = run.train.total_steps(len(open_captions(run.data.train)))
        samples = max(1, round(ratio * steps)) * run.train.global_batch_size
        arms[f"{arm} {EQUAL_SECONDS}"] = {**recipe.arms[arm], "train.samples": samples}
    return _cells(recipe, arms)


def lit_cells(recipe: StudyRecipe, out: Path) -> dict[str, Cell]:
    """The runs that freeze the tower of a finished run at equal data and train a text tower beside it."""
    return {
        name: cell
        for seed in recipe.seeds
        for arm in recipe.lit
        for name, cell in _cells(
            recipe,
            {
                f"{LIT} {arm}": {
                    **recipe.arms[arm],
                    "objective.name": "lit",
                    "tower": {"name": str(out / _name(arm, seed))},
                }
            },
            [seed],
        ).items()
    }


def study(
    recipe: StudyRecipe, out: Path, jobs: int, progress: Progress | None = None, on_cell: OnCell | None = None
) -> dict[str, Cell]:
    """Run all cells in ``out``, ``jobs`` at a time, write ``out/study.md``, and return the cells.

    What is finished is not done again. Raises UserError for a task that fits no arm, and as
    :func:`~vlmkit.pipelines.grid.run_grid` does.
    """
    _check_tasks(recipe)
    done: dict[str, Cell] = {}
    for stage in (lambda: cells(recipe), lambda: equal_seconds_cells(recipe, out), lambda: lit_cells(recipe, out)):
        upcoming = stage()
        if upcoming:
            _run(recipe, upcoming, out, jobs, progress, on_cell)
        done |= upcoming
    (out / "study.md").write_text(markdown(recipe, done, out), encoding="utf-8")
    return done


@dataclass(frozen=True)
class Table:
    """What one task found: every arm against every attribute. Cells that have no result yet say so."""

    task: str
    columns: list[str]
    lines: list[tuple[str, ...]]


def tables(recipe: StudyRecipe, done: Mapping[str, Cell], out: Path) -> list[Table]:
    """A table of every task of the study."""
    return [_table(task, recipe, done, out) for task in recipe.tasks]


def _table(task: str, recipe: StudyRecipe, done: Mapping[str, Cell], out: Path) -> Table:
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, cell in done.items():
        for row in scores(out / name):
            if row.benchmark == task:
                setting = row.variant.removesuffix(RANDOM_TOWER).removesuffix(", ")
                arm = RANDOM_TOWER if row.variant.endswith(RANDOM_TOWER) else cell.arm
                values[arm][f"{row.family}, {setting}" if setting else row.family].append(row.value)
    arms = [cell.arm for cell in done.values() if task in _tasks(recipe, cell)]
    columns = list(dict.fromkeys(column for of_arm in values.values() for column in of_arm))
    lines = []
    for arm in dict.fromkeys([*arms, *(arm for arm in values if arm == RANDOM_TOWER)]):
        seeds = max((len(found) for found in values[arm].values()), default=0)
        found = [str(Score.of(values[arm][column])) if values[arm][column] else "unfinished" for column in columns]
        lines.append((arm, *found, str(seeds)))
    return Table(task, ["arm", *columns, "seeds"], lines)


def markdown(recipe: StudyRecipe, done: Mapping[str, Cell], out: Path) -> str:
    """The tables with their settings: samples, measured rate and training seconds of every arm."""
    cost_columns = ["arm", "samples", "batch", "samples/s (median)", "seconds"]
    parts = [
        "Mean over seeds +- its standard error.",
        *(f"`{table.task}`\n\n{_pipe(table.columns, table.lines)}" for table in tables(recipe, done, out)),
        "What each arm was given, by the runs' own metrics (rates of runs that train beside others):",
        _pipe(cost_columns, [_cost(arm, done, out) for arm in dict.fromkeys(cell.arm for cell in done.values())]),
        "Settings:",
        f"```yaml\n{recipe.to_yaml()}```",
    ]
    return "\n\n".join(parts) + "\n"


def _check_tasks(recipe: StudyRecipe) -> None:
    fitting = {task for cell in cells(recipe).values() for task in fitting_tasks(cell.recipe)}
    if unfit := [task for task in recipe.tasks if task not in (fitting | {"zero_shot"} if recipe.lit else fitting)]:
        raise UserError(
            f"No arm of this study can be evaluated on {', '.join(unfit)}; tasks must be among {', '.join(fitting)}."
        )


def _tasks(recipe: StudyRecipe, cell: Cell) -> list[str]:
    """The study's tasks that fit the cell. A LiT run's frozen tower has been probed as that of its arm already."""
    fitting = ["zero_shot"] if cell.recipe.objective.name == "lit" else fitting_tasks(cell.recipe)
    return [task for task in recipe.tasks if task in fitting]


def _cells(
    recipe: StudyRecipe, arms: Mapping[str, Mapping[str, object]], seeds: Sequence[int] | None = None
) -> dict[str, Cell]:
    return {
        _name(arm, seed): Cell(arm, seed, cast(PretrainRecipe, vary(recipe.base, {**changes, "seed": seed})))
        for seed in seeds or recipe.seeds
        for arm, changes in arms.items()
    }


def _name(arm: str, seed: int) -> str:
    return f"{arm.replace(' ', '-')}-seed{seed}"


def _run(
    recipe: StudyRecipe,
    upcoming: Mapping[str, Cell],
    out: Path,
    jobs: int,
    progress: Progress | None,
    on_cell: OnCell | None,
) -> None:
    settings = EvalSettings(recipe.train_data, recipe.test_data, recipe.eval_samples)
    steps = [cell.recipe.train.total_steps(len(open_captions(cell.recipe.data.train))) for cell in upcoming.values()]
    arguments = {name: (cell.recipe, _tasks(recipe, cell), settings) for name, cell in upcoming.items()}
    run_grid(arguments, _run_cell, sum(steps), out, jobs, progress, on_cell)


def _run_cell(out: Path, recipe: PretrainRecipe, tasks: Sequence[str], settings: EvalSettings) -> None:
    pretrain(recipe, out)
    done = {row.benchmark for row in scores(out)}
    if missing := [task for task in tasks if task not in done]:
        evaluate(out, missing, settings)


def _rate(recipe: StudyRecipe, out: Path, arm: str) -> float:
    return statistics.median(rate for seed in recipe.seeds for rate in _rates(out / _name(arm, seed)))


def _rates(run: Path) -> Iterable[float]:
    """Samples per second of every logged step after the first, which pays for starting up."""
    lines = [json.loads(line) for line in RunDirectory(run).metrics_path.read_text().splitlines()]
    return [line["train/samples_per_second"] for line in lines if "train/samples_per_second" in line][1:]


def _cost(arm: str, done: Mapping[str, Cell], out: Path) -> tuple[str, ...]:
    runs = {name: cell for name, cell in done.items() if cell.arm == arm}
    train = next(iter(runs.values())).recipe.train
    rates = [rate for name in runs if scores(out / name) for rate in _rates(out / name)]
    if not rates:
        return arm, "", str(train.global_batch_size), "unfinished", ""
    rate, samples = statistics.median(rates), train.samples or train.total_steps(0) * train.global_batch_size
    return arm, str(samples), str(train.global_batch_size), f"{rate:.0f}", f"{samples / rate:.0f}"


def _pipe(columns: Iterable[str], lines: Iterable[tuple[str, ...]]) -> str:
    header = list(columns)
    rows: list[Iterable[str]] = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
