"""Studies: arms and seeds as recipes, equal seconds from measured rates, and a small one run for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_recipes import TRAIN

from vlmkit.config import StudyRecipe
from vlmkit.errors import UserError
from vlmkit.pipelines import study
from vlmkit.recipe import load_recipe


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
    with pytest.raises(UserError, match="No arm of this study can be evaluated on linear_prob; tasks must be among"):
        study.study(study_recipe(tasks=["linear_prob"]), Path("absent"), jobs=1)
    with pytest.raises(UserError, match=r"there is no key objective\.nam \(did you mean objective\.name\?\)"):
        study.cells(study_recipe(arms={"a": {"objective.nam": "clip"}}, equal_seconds={}))


@pytest.mark.slow
def test_a_study_trains_evaluates_skips_what_is_done_and_writes_its_tables(tmp_path: Path) -> None:
    recipe = study_recipe(tasks=["linear_probe", "zero_shot"], lit=["superclass"], eval_samples=100)
    done = study.study(recipe, tmp_path, jobs=2)
    assert len(done) == 8 and all((tmp_path / name / "results.jsonl").is_file() for name in done)
    probe, zero_shot = study.tables(recipe, done, tmp_path)
    assert probe.columns[:2] == ["arm", "color"]
    assert [line[0] for line in probe.lines] == ["superclass", "clip", "clip at equal seconds", "random tower"]
    assert [line[0] for line in zero_shot.lines] == ["clip", "clip at equal seconds", "LiT on superclass"]
    assert {line[-1] for line in (*probe.lines[:3], *zero_shot.lines)} == {"2"}
    text = (tmp_path / "study.md").read_text()
    assert "clip at equal seconds" in text and "objective.name: clip" in text and "unfinished" not in text
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    study.study(recipe, tmp_path, jobs=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_a_cell_without_results_is_called_unfinished(tmp_path: Path) -> None:
    done = study.cells(study_recipe())
    (table,) = study.tables(study_recipe(), done, tmp_path)
    assert table.columns == ["arm", "seeds"] and ("clip", "0") in table.lines
    assert "unfinished" in study.markdown(study_recipe(), done, tmp_path)
