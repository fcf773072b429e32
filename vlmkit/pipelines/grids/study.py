"""A study of pretraining: arms that differ in a few keys, over seeds, evaluated alike."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vlmkit.config import PretrainRecipe, StudyRecipe, arm_folder, at_equal_seconds, lit_on
from vlmkit.data.sources.opener import open_captions
from vlmkit.errors import UserError
from vlmkit.pipelines.evaluation.evaluate import RANDOM_TOWER, EvalSettings, evaluate
from vlmkit.pipelines.evaluation.evaluate_tower import WITHOUT_ROWS, check_data, fitting_tasks
from vlmkit.pipelines.grids.grid import OnCell, run_grid, scores
from vlmkit.pipelines.grids.score_tables import UNFINISHED, Table, pipe_table, scores_over_seeds
from vlmkit.pipelines.plans.plan import Plan
from vlmkit.pipelines.pretrain import pretrain
from vlmkit.recipe import vary
from vlmkit.runs import RunDirectory, write_atomically
from vlmkit.training.metrics import Progress


@dataclass(frozen=True)
class Cell:
    """One run of the study: its arm, its seed, its recipe."""

    arm: str
    seed: int
    recipe: PretrainRecipe


def cells(recipe: StudyRecipe) -> dict[str, Cell]:
    """The runs at equal data, by the name of their directory."""
    return _cells(recipe, {arm: dict(changes) for arm, changes in recipe.arms.items()})


def planned_cells(recipe: StudyRecipe, out: Path) -> dict[str, Cell]:
    """All runs of the study; those at equal seconds with the samples of equal data, until the rates are measured."""
    again = {at_equal_seconds(arm): recipe.arms[arm] for arm in recipe.equal_seconds}
    return cells(recipe) | _cells(recipe, again) | lit_cells(recipe, out)


def plan(recipe: StudyRecipe, out: Path) -> Plan:
    """What the study would run. Raises UserError as :func:`study` does before its first run."""
    _check_tasks(recipe)
    runs = planned_cells(recipe, out)
    steps = sum(_steps(cell.recipe) for cell in runs.values())
    finished = sum(RunDirectory(out / name).finished for name in runs)
    counted = "; those at equal seconds count as at equal data, until rates are measured" * bool(recipe.equal_seconds)
    facts = [
        ("study", str(out)),
        ("runs", f"{len(runs)}: {len(recipe.all_arms)} arms, {len(recipe.seeds)} seeds each; {finished} are finished"),
        ("steps", f"{steps} of all runs together{counted}"),
        ("arms", ", ".join(recipe.all_arms)),
        ("tasks", ", ".join(recipe.tasks)),
    ]
    return Plan("study", tuple(facts))


def equal_seconds_cells(recipe: StudyRecipe, out: Path) -> dict[str, Cell]:
    """The runs at equal seconds, from the rates that the finished runs at equal data have measured.

    An arm gets the samples of its reference times the ratio of their rates (median over logged steps and seeds), so its
    learning-rate schedule ends when its time does.
    """
    arms = {}
    for arm, reference in recipe.equal_seconds.items():
        ratio = _rate(recipe, out, arm) / _rate(recipe, out, reference)
        run = cells(recipe)[_name(reference, recipe.seeds[0])].recipe
        samples = max(1, round(ratio * _steps(run))) * run.train.global_batch_size
        arms[at_equal_seconds(arm)] = {**recipe.arms[arm], "train.samples": samples}
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
                lit_on(arm): {
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

    What is finished is not done again; a study that stops early leaves the tables of what is there. Raises UserError
    for a task that fits no arm or gives no scores and for one of two sets alone, and as
    :func:`~vlmkit.pipelines.grids.grid.run_grid` does.
    """
    _check_tasks(recipe)
    done = planned_cells(recipe, out)
    for stage in (lambda: cells(recipe), lambda: equal_seconds_cells(recipe, out), lambda: lit_cells(recipe, out)):
        upcoming = stage()
        done |= upcoming
        try:
            if upcoming:
                _run(recipe, upcoming, out, jobs, progress, on_cell)
        finally:
            write_atomically(out / "study.md", markdown(recipe, done, out))
    return done


def tables(recipe: StudyRecipe, done: Mapping[str, Cell], out: Path) -> list[Table]:
    """A table of every setting of every task of the study."""
    return [table for task in recipe.tasks for table in _tables(task, recipe, done, out)]


_Values = dict[tuple[str, str], dict[int, float]]
"""By arm and attribute: what each seed scored."""


def _tables(task: str, recipe: StudyRecipe, done: Mapping[str, Cell], out: Path) -> list[Table]:
    settings: dict[str, _Values] = defaultdict(lambda: defaultdict(dict))
    for name, cell in done.items():
        for row in scores(out / name):
            if row.benchmark == task:
                setting = row.variant.removesuffix(RANDOM_TOWER).removesuffix(", ")
                arm = RANDOM_TOWER if row.variant.endswith(RANDOM_TOWER) else cell.arm
                # Every arm has the random tower of its seed beside it: that of the first counts, once.
                settings[setting][arm, row.family.replace("_", " ")].setdefault(cell.seed, row.value)
    arms = list(dict.fromkeys(cell.arm for cell in done.values() if task in _tasks(recipe, cell)))
    return [
        _table(f"{task}, {setting}" if setting else task, arms, values, len(recipe.seeds))
        for setting, values in (settings or {"": {}}).items()
    ]


def _table(title: str, arms: Sequence[str], values: _Values, num_seeds: int) -> Table:
    columns = list(dict.fromkeys(attribute for _, attribute in values))
    lines = []
    for arm in [*arms, *dict.fromkeys(arm for arm, _ in values if arm == RANDOM_TOWER)]:
        found = [list(values.get((arm, column), {}).values()) for column in columns]
        lines.append((arm, *scores_over_seeds(found, num_seeds)))
    return Table(title, ["arm", *columns, "seeds"], lines)


def markdown(recipe: StudyRecipe, done: Mapping[str, Cell], out: Path) -> str:
    """The tables with their settings: samples, measured rate and training seconds of every arm."""
    cost_columns = ["arm", "samples", "batch", "samples/s (median)", "seconds"]
    parts = [
        f"Mean over seeds ± its standard error. The {RANDOM_TOWER} is an untrained one like the first arm's.",
        *(f"`{table.title}`\n\n{table.markdown()}" for table in tables(recipe, done, out)),
        "What each arm was given, by the runs' own metrics (rates of runs that train beside others):",
        pipe_table(cost_columns, [_cost(arm, done, out) for arm in dict.fromkeys(cell.arm for cell in done.values())]),
        "Settings:",
        f"```yaml\n{recipe.to_yaml()}```",
    ]
    return "\n\n".join(parts) + "\n"


def _check_tasks(recipe: StudyRecipe) -> None:
    check_data(recipe.tasks, _settings(recipe))
    fitting = {task: None for cell in cells(recipe).values() for task in fitting_tasks(cell.recipe)}
    if recipe.lit:
        fitting["zero_shot"] = None
    scored = [task for task in fitting if task not in WITHOUT_ROWS]
    if unfit := [task for task in recipe.tasks if task not in scored]:
        raise UserError(
            f"No arm of this study can be scored on {', '.join(unfit)}; tasks must be among {', '.join(scored)}."
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
    return f"{arm_folder(arm)}-seed{seed}"


def _steps(recipe: PretrainRecipe) -> int:
    """Optimizer steps of a run; its data are opened only where their number counts."""
    return recipe.train.total_steps(len(open_captions(recipe.data.train)) if recipe.train.epochs else 0)


def _settings(recipe: StudyRecipe) -> EvalSettings:
    return EvalSettings(recipe.train_data, recipe.test_data, recipe.eval_samples)


def _run(
    recipe: StudyRecipe,
    upcoming: Mapping[str, Cell],
    out: Path,
    jobs: int,
    progress: Progress | None,
    on_cell: OnCell | None,
) -> None:
    steps = sum(_steps(cell.recipe) for cell in upcoming.values())
    arguments = {name: (cell.recipe, _tasks(recipe, cell), _settings(recipe)) for name, cell in upcoming.items()}
    run_grid(arguments, _run_cell, steps, out, jobs, progress, on_cell)


def _run_cell(out: Path, recipe: PretrainRecipe, tasks: Sequence[str], settings: EvalSettings) -> None:
    pretrain(recipe, out)
    done = {row.benchmark for row in scores(out)}
    if missing := [task for task in tasks if task not in done]:
        evaluate(out, missing, settings)


def _rate(recipe: StudyRecipe, out: Path, arm: str) -> float:
    rates = [rate for seed in recipe.seeds for rate in _rates(out / _name(arm, seed))]
    if not rates:
        raise UserError(
            f"The runs of the arm {arm!r} have logged no rate, which equal seconds are bought by; "
            "lower train.log.every_steps, or leave the arm out of equal_seconds."
        )
    return statistics.median(rates)


def _rates(run: Path) -> list[float]:
    """Samples per second of every logged step after the first, which pays for starting up, if there are others."""
    lines = [json.loads(line) for line in RunDirectory(run).metrics_path.read_text().splitlines()]
    rates = [line["train/samples_per_second"] for line in lines if "train/samples_per_second" in line]
    return rates[1:] or rates


def _cost(arm: str, done: Mapping[str, Cell], out: Path) -> tuple[str, ...]:
    runs = {name: cell for name, cell in done.items() if cell.arm == arm}
    recipe = next(iter(runs.values())).recipe
    batch = recipe.train.global_batch_size
    rates = [rate for name in runs if scores(out / name) for rate in _rates(out / name)]
    if not rates:
        return arm, "", str(batch), UNFINISHED, ""
    rate, samples = statistics.median(rates), _steps(recipe) * batch
    return arm, str(samples), str(batch), f"{rate:.0f}", f"{samples / rate:.0f}"
