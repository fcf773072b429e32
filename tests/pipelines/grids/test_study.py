"""Studies: arms and seeds as recipes, equal seconds from measured rates, and a small one run for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_recipes import TRAIN

from vlmkit.config import StudyRecipe
from vlmkit.errors import Interrupted, UserError
from vlmkit.pipelines.grids import study
from vlmkit.recipe import load_recipe
from vlmkit.runs import ResultRow, RunDirectory


def study_recipe(**overrides: Any) -> StudyRecipe:
    base = {
        "arms": {"superclass": {}, "clip": {"objective.name": "clip", "train.global_batch_size": 32}},
        "seeds": [0, 1],
        "equal_seconds": {"clip": "superclass"},
        "test_data": "miniworld:test?scenes=60",
        "train_data": "miniworld:train?scenes=120",
        "base.data": {"train": "miniworld:train?scenes=64", "val": None},
        "base.train": TRAIN,
    }
    recipe = load_recipe("study", None, {**base, **overrides})
    assert isinstance(recipe, StudyRecipe)
    return recipe


def write_rates(run: Path, rates: list[float]) -> None:
    run.mkdir(parents=True)
    lines = [{"step": step, "train/samples_per_second": rate} for step, rate in enumerate(rates, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_cells_are_arms_times_seeds_and_differ_in_nothing_else() -> None:
    cells = study.cells(study_recipe())
    assert sorted(cells) == ["clip-seed0", "clip-seed1", "superclass-seed0", "superclass-seed1"]
    clip, plain = cells["clip-seed1"].recipe, cells["superclass-seed1"].recipe
    assert (clip.objective.name, clip.train.global_batch_size, clip.seed) == ("clip", 32, 1)
    restored = clip.model_copy(update={"objective": plain.objective, "train": plain.train})
    assert restored == plain and plain.train.steps == TRAIN["steps"]


def test_equal_seconds_buy_samples_at_the_measured_rate(tmp_path: Path) -> None:
    recipe = study_recipe()
    for seed in (0, 1):
        write_rates(tmp_path / f"superclass-seed{seed}", [1.0, 200.0, 200.0])
        write_rates(tmp_path / f"clip-seed{seed}", [1.0, 50.0, 100.0, 150.0])
    cells = study.equal_seconds_cells(recipe, tmp_path)
    assert sorted(cells) == ["clip-at-equal-seconds-seed0", "clip-at-equal-seconds-seed1"]
    reference = study.cells(recipe)["superclass-seed0"].recipe.train
    cell = cells["clip-at-equal-seconds-seed0"].recipe
    assert cell.objective.name == "clip" and cell.train.steps is None
    assert cell.train.samples == (reference.steps or 0) * reference.global_batch_size // 2


def test_a_lit_cell_freezes_the_run_of_its_arm_and_seed(tmp_path: Path) -> None:
    cells = study.lit_cells(study_recipe(lit=["superclass"]), tmp_path)
    assert sorted(cells) == ["LiT-on-superclass-seed0", "LiT-on-superclass-seed1"]
    recipe = cells["LiT-on-superclass-seed1"].recipe
    assert (recipe.objective.name, recipe.seed) == ("lit", 1)
    assert recipe.tower.name == str(tmp_path / "superclass-seed1")


def test_wrong_arms_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="equal_seconds names lit, which is no arm"):
        study_recipe(equal_seconds={"lit": "superclass"})
    with pytest.raises(UserError, match="lit names siglip, which is no arm"):
        study_recipe(lit=["siglip"])
    for task in ("linear_prob", "label_report"):  # a label report has no scores: it would never be done
        with pytest.raises(
            UserError, match=f"No arm of this study can be scored on {task}; tasks must be among linear"
        ):
            study.study(study_recipe(tasks=["linear_probe", task]), Path("absent"), jobs=1)
    with pytest.raises(UserError, match="linear_probe reads --test-data, which is missing"):
        study.plan(study_recipe(test_data=None), Path("absent"))
    with pytest.raises(UserError, match="the arms 'a b' and 'a-b' would share their directories"):
        study_recipe(arms={"a b": {}, "a-b": {}}, equal_seconds={})
    with pytest.raises(UserError, match="'a-at-equal-seconds' and 'a at equal seconds' would share"):
        study_recipe(arms={"a": {}, "a-at-equal-seconds": {}}, equal_seconds={"a": "a"})
    for arm in ("x/../../y", "..", "", "a\\b"):
        with pytest.raises(UserError, match="cannot name a directory"):
            study_recipe(arms={arm: {}}, equal_seconds={})
    with pytest.raises(UserError, match=r"there is no key objective\.nam \(did you mean objective\.name\?\)"):
        study.cells(study_recipe(arms={"a": {"objective.nam": "clip"}}, equal_seconds={}))


def test_a_single_logged_step_is_a_rate_and_none_is_a_sentence(tmp_path: Path) -> None:
    recipe = study_recipe(seeds=[0])
    write_rates(tmp_path / "superclass-seed0", [200.0])
    write_rates(tmp_path / "clip-seed0", [100.0])
    (cell,) = study.equal_seconds_cells(recipe, tmp_path).values()
    assert cell.recipe.train.samples == TRAIN["steps"] * TRAIN["global_batch_size"] // 2
    (tmp_path / "clip-seed0" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="the arm 'clip' have logged no rate"):
        study.equal_seconds_cells(recipe, tmp_path)


def row(value: float, variant: str = "", task: str = "linear_probe") -> ResultRow:
    return ResultRow(task, "first_character", "accuracy", value, 60, 0.01, "data", "scored", variant=variant)


def test_epochs_count_by_the_data(tmp_path: Path) -> None:
    train = {key: value for key, value in TRAIN.items() if key != "steps"} | {"epochs": 3}
    recipe = study_recipe(arms={"a": {}}, equal_seconds={}, seeds=[0], **{"base.train": train})
    write_rates(tmp_path / "a-seed0", [1.0, 96.0])
    RunDirectory(tmp_path / "a-seed0").append_results([row(0.5)])
    text = study.markdown(recipe, study.cells(recipe), tmp_path)
    assert "| a | 192 | 16 | 96 | 2 |" in text, "3 epochs of 64 scenes at 96 samples a second"
    assert dict(study.plan(recipe, tmp_path).facts)["steps"].startswith("12 ")


def test_random_towers_count_once_a_seed_and_settings_have_tables_of_their_own(tmp_path: Path) -> None:
    recipe = study_recipe(tasks=["linear_probe", "few_shot"], equal_seconds={})
    done = study.planned_cells(recipe, tmp_path)
    for name, cell in done.items():
        shots = [row(0.25 + cell.seed / 8, setting, "few_shot") for setting in ("1-shot", "5-shot")]
        rows = [row(0.5), row(0.25 + cell.seed / 4, "random tower"), *shots]
        RunDirectory(tmp_path / name).append_results(rows)
    probe, one, five = study.tables(recipe, done, tmp_path)
    assert probe.columns == ["arm", "first character", "seeds"]
    assert probe.lines[-1] == ("random tower", "0.375 ± 0.125", "2"), "two seeds, not the four runs"
    assert (one.title, five.title) == ("few_shot, 1-shot", "few_shot, 5-shot") and len(one.lines) == 2


def test_the_plan_counts_all_runs_and_names_all_arms(tmp_path: Path) -> None:
    facts = dict(study.plan(study_recipe(lit=["superclass"]), tmp_path).facts)
    assert facts["runs"] == "8: 4 arms, 2 seeds each; 0 are finished"
    assert facts["steps"].startswith(f"{8 * TRAIN['steps']} ") and "count as at equal data" in facts["steps"]
    assert facts["arms"] == "superclass, clip, clip at equal seconds, LiT on superclass"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [UserError("clip-seed0 failed"), Interrupted("stopped", 2)])
def test_a_study_that_stops_leaves_the_tables_of_what_is_there(
    stop: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_grid(*_: object) -> None:
        write_rates(tmp_path / "superclass-seed0", [1.0, 96.0])
        RunDirectory(tmp_path / "superclass-seed0").append_results([row(0.5)])
        raise stop

    monkeypatch.setattr(study, "run_grid", run_grid)
    with pytest.raises(type(stop)):
        study.study(study_recipe(lit=["superclass"], tasks=["linear_probe", "zero_shot"]), tmp_path, jobs=1)
    text = (tmp_path / "study.md").read_text()
    assert "| superclass | 0.500 | 1 of 2 |" in text and "| clip at equal seconds | unfinished | 0 of 2 |" in text
    assert "| LiT on superclass | 0 of 2 |" in text


@pytest.mark.slow
def test_a_study_trains_evaluates_skips_what_is_done_and_writes_its_tables(tmp_path: Path) -> None:
    recipe = study_recipe(tasks=["linear_probe", "zero_shot"], lit=["superclass"], eval_samples=100)
    done = study.study(recipe, tmp_path, jobs=2)
    assert len(done) == 8 and all((tmp_path / name / "results.jsonl").is_file() for name in done)
    probe, zero_shot = study.tables(recipe, done, tmp_path)
    assert probe.columns[:2] == ["arm", "color"]
    assert [line[0] for line in probe.lines] == ["superclass", "clip", "clip at equal seconds", "random tower"]
    assert [line[0] for line in zero_shot.lines] == ["clip", "clip at equal seconds", "LiT on superclass"]
    assert {line[-1] for line in (*probe.lines, *zero_shot.lines)} == {"2"}
    text = (tmp_path / "study.md").read_text()
    assert "clip at equal seconds" in text and "objective.name: clip" in text and "unfinished" not in text
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    study.study(recipe, tmp_path, jobs=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_a_cell_without_results_is_called_unfinished(tmp_path: Path) -> None:
    done = study.cells(study_recipe())
    (table,) = study.tables(study_recipe(), done, tmp_path)
    assert table.columns == ["arm", "seeds"] and ("clip", "0 of 2") in table.lines
    assert "unfinished" in study.markdown(study_recipe(), done, tmp_path)
