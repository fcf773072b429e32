"""Sweeps: the grid of recipes, what becomes of their results, and small ones run for real, locally and by a script."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_recipes import TRAIN

from vlmkit import registry
from vlmkit.config import SweepRecipe
from vlmkit.errors import UserError
from vlmkit.pipelines.grids import sweep
from vlmkit.pipelines.grids.sweep_results import SweepResults, unevaluated
from vlmkit.recipe import load_recipe
from vlmkit.runs import ResultRow, RunDirectory, write_atomically
from vlmkit.scaling.measurements import load_measurements


def sweep_recipe(**overrides: Any) -> SweepRecipe:
    base = {
        "llms": ["nano", "micro"],
        "tokens": [1, 4],
        "base.stage": "finetune",
        "base.data.train": "miniworld:train?scenes=64",
        "base.data.val": None,
        "base.finetune": TRAIN,
    }
    recipe = load_recipe("sweep", None, {**base, **overrides})
    assert isinstance(recipe, SweepRecipe)
    return recipe


def write_scores(found: SweepResults, error: Callable[[float, int], float]) -> None:
    """Give every run of a sweep scores whose error is a function of (billions, visual tokens)."""
    for name, cell in found.cells.items():
        size = registry.llm(cell.llm.name).num_params_non_embedding
        told = registry.compressor(cell.compressor.name).conditioned
        RunDirectory(found.out / name).append_results(
            ResultRow(
                benchmark="miniworld",
                family=family,
                metric="exact_match",
                value=1 - error(size / 1e9, count) * factor,
                num_samples=100,
                stderr=0.01,
                data_revision="r",
                scoring="official",
                limit=found.recipe.eval_samples,
                llm=cell.llm.name,
                llm_params_non_embedding=size,
                visual_tokens=count,
                compressor=cell.compressor.name,
                query=cell.compressor.query if told else None,
                seed=cell.seed,
            )
            for count in cell.compressor.counts
            for family, factor in (("reasoning", 1.0), ("ocr", 0.5))
        )


def product_law(billions: float, tokens: int) -> float:
    return 0.1 * billions**-0.125 * tokens**-0.05


def test_cells_are_the_product_of_the_lists_with_their_own_rates() -> None:
    cells = sweep.cells(sweep_recipe(seeds=[0, 1], lr={"nano": 0.5}))
    assert len(cells) == 8
    cell = cells["nano-avgpool4-seed1"]
    assert (cell.llm.name, cell.compressor.num_visual_tokens, cell.seed) == ("nano", 4, 1)
    assert cell.finetune.optim.lr == 0.5 and cells["micro-avgpool4-seed1"].finetune.optim.lr != 0.5
    assert cell.finetune.steps == TRAIN["steps"] and cell.data.train == "miniworld:train?scenes=64"
    assert next(iter(cells)).startswith("micro-avgpool4"), "the costliest cell goes first"


def test_queries_are_for_the_compressors_that_see_the_question() -> None:
    recipe = sweep_recipe(llms=["nano"], tokens=[4], compressors=["avgpool", "quecc"], queries=["llm", "none"])
    told = {name: cell.compressor.query for name, cell in sweep.cells(recipe).items()}
    assert told == {
        "nano-avgpool4-seed0": "llm",
        "nano-quecc4-query-llm-seed0": "llm",
        "nano-quecc4-query-none-seed0": "none",
    }


def test_the_cells_of_a_written_recipe_are_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = sweep_recipe(tokens=[4, [16, 1]], lr={"nano": 0.5}, slurm={"time": "12:00:00", "gpus": 1})
    write_atomically(tmp_path / "sweep.yaml", recipe.to_yaml())
    again = load_recipe("sweep", tmp_path / "sweep.yaml", {})
    assert isinstance(again, SweepRecipe) and again.slurm == recipe.slurm
    assert list(sweep.cells(again).items()) == list(sweep.cells(recipe).items())


def test_options_of_sbatch_that_would_go_wrong_are_refused() -> None:
    with pytest.raises(UserError, match="time must be quoted, like '12:00:00'"):
        sweep_recipe(slurm={"time": 43200})
    with pytest.raises(UserError, match="array is written by the sweep itself"):
        sweep_recipe(slurm={"array": "0-3"})
    with pytest.raises(UserError, match="no long option of sbatch"):
        sweep_recipe(slurm={"partition": "gpu\nrm"})


def test_results_are_means_over_seeds_and_a_law_for_each_series(tmp_path: Path) -> None:
    recipe = sweep_recipe(
        llms=["nano", "micro", "tiny"],
        tokens=[1, 4, 16],
        seeds=[0, 1],
        compressors=["quecc"],
        queries=["none", "llm"],
        eval_samples=50,
    )
    found = sweep.results(recipe, tmp_path)
    write_scores(found, product_law)
    unread = "tiny-quecc4-query-llm-seed1"
    (tmp_path / unread / "results.jsonl").unlink()
    found, laws, submit = sweep.launch_on_slurm(recipe, tmp_path, jobs=None)
    assert submit and not laws
    assert f"#SBATCH --array={list(found.cells).index(unread)}\n" in (tmp_path / "sweep.sbatch").read_text()
    told, blind = found.tables()
    assert [told.title, blind.title] == ["quecc, query llm", "quecc, query none"]
    assert told.columns == ["LLM", "tokens", "reasoning", "ocr", "seeds"]
    grid = [(llm, count) for llm in recipe.llms for count in ("1", "4", "16")]
    assert [line[:2] for line in told.lines] == grid == [line[:2] for line in blind.lines]
    nano = registry.llm("nano").num_params_non_embedding / 1e9
    expected = (1 - product_law(nano, 1), 1 - product_law(nano, 1) / 2)
    assert blind.lines[0][2:] == (*(f"{score:.3f} ± 0.000" for score in expected), "2")
    assert [line[-1] for line in told.lines] == ["2"] * 7 + ["1 of 2", "2"]

    write_scores(found, product_law)
    _, laws, submit = sweep.launch_on_slurm(recipe, tmp_path, jobs=None)
    assert submit is None and [law.series for law in laws] == [told.title, blind.title]
    for law in laws:
        assert law.picture.stat().st_size > 0 and law.page.read_text().startswith("<!")
        assert [line[0] for line in law.table.lines] == ["reasoning", "ocr"]
        ratio = law.table.columns.index("alpha / beta")
        assert all(line[ratio] == "2.5 (2.5 to 2.5)" for line in law.table.lines), "as the scores were made"
    assert "![Error against cost](frontier-quecc-query-llm.png)" in (tmp_path / "sweep.md").read_text()
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert len(rows) == len(found.cells) * 2 == 72, "two families"
    assert not list(tmp_path.glob(".*")), "no scratch file stays"


def test_frontier_reads_the_table_as_it_reads_the_runs(tmp_path: Path) -> None:
    recipe = sweep_recipe(llms=["nano", "micro", "tiny"], tokens=[[1, 4, 16]], seeds=[0, 1])
    found = sweep.results(recipe, tmp_path)
    write_scores(found, product_law)
    found.write()
    of_table, of_runs = load_measurements([tmp_path / "results.csv"]), load_measurements([tmp_path])
    assert of_table == of_runs and len(of_table.rows) == 36
    (law,) = found.write_laws()
    assert law.frontier and law.picture == tmp_path / "frontier.png"


def test_a_grid_without_a_law_says_what_to_measure(tmp_path: Path) -> None:
    (tmp_path / "frontier.png").write_text("of an earlier grid")
    found = sweep.results(sweep_recipe(), tmp_path)
    write_scores(found, product_law)
    (law,) = found.write_laws()
    assert law.frontier is None and not (tmp_path / "frontier.png").exists()
    assert "only 2 LLM sizes but the law needs 3: measure 1 more size" in (tmp_path / "sweep.md").read_text()


def test_rows_of_other_evaluations_are_not_the_sweeps(tmp_path: Path) -> None:
    found = sweep.results(sweep_recipe(llms=["nano"], tokens=[[1, 4]], eval_samples=50), tmp_path)
    ((name, cell),) = found.cells.items()
    assert unevaluated(tmp_path / name, cell, 50) == (1, 4)
    write_scores(found, product_law)
    assert unevaluated(tmp_path / name, cell, 50) == ()
    assert unevaluated(tmp_path / name, cell, None) == (1, 4), "all samples were asked for"
    rows = RunDirectory(tmp_path / name).results()
    (tmp_path / name / "results.jsonl").unlink()
    RunDirectory(tmp_path / name).append_results(row for row in rows if row.visual_tokens == 1)
    assert unevaluated(tmp_path / name, cell, 50) == (4,), "killed between two counts"


def test_an_unknown_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no cell 4: its 4 cells are 0 to 3"):
        sweep.run_cell(sweep_recipe(), tmp_path, 4)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def elastic(tower_run: Path) -> SweepRecipe:
    """A grid of four small runs."""
    return sweep_recipe(tokens=[[1, 4]], seeds=[0, 1], eval_samples=20, **{"base.vision_tower.name": str(tower_run)})


@pytest.fixture(scope="module")
def whole(elastic: SweepRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without an interruption."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        sweep.sweep(elastic, out, jobs=2)
    return out


@pytest.mark.slow
def test_a_sweep_trains_evaluates_and_skips_what_is_done(elastic: SweepRecipe, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    heard: list[str] = []
    found, (law,) = sweep.sweep(elastic, whole, jobs=2, on_cell=lambda name, rows: heard.append(name))
    assert sorted(heard) == sorted(found.rows) == sorted(sweep.cells(elastic))
    assert all({row.family for row in rows} >= {"reasoning", "ocr"} for rows in found.rows.values())
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")} == before
    assert "measure 1 more size" in law.reason


@pytest.mark.slow
def test_a_sweep_names_what_fails(tower_run: Path, tmp_path: Path) -> None:
    broken = sweep_recipe(**{"base.vision_tower.name": str(tower_run), "tokens": [5], "llms": ["nano"]})
    with pytest.raises(UserError, match=r"nano-avgpool5-seed0 failed: .*1, 4, 16, 64"):
        sweep.sweep(broken, tmp_path, jobs=1)


@pytest.mark.slow
def test_a_sweep_killed_half_way_and_restarted_ends_with_the_same_table(
    elastic: SweepRecipe, whole: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "killed", tmp_path / "recipe.yaml"
    file.write_text(elastic.to_yaml())
    command = [sys.executable, "-m", "vlmkit", "sweep", "--recipe", str(file), "--out", str(out), "--jobs", "2"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(out.glob("*/results.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    finished = [name for name, cell in sweep.cells(elastic).items() if not unevaluated(out / name, cell, 20)]
    assert len(finished) < 4, "it was killed half-way"
    sweep.sweep(elastic, out, jobs=2)
    assert (out / "results.csv").read_text() == (whole / "results.csv").read_text()


@pytest.mark.slow
def test_the_cells_of_the_array_script_one_by_one_give_the_same_table(
    elastic: SweepRecipe, whole: Path, tmp_path: Path
) -> None:
    _, laws, submit = sweep.launch_on_slurm(elastic, tmp_path, jobs=3)
    script = tmp_path / "sweep.sbatch"
    assert submit == f"sbatch {script}" and not laws
    assert "#SBATCH --array=0,1,2,3%3" in script.read_text()
    for index in range(4):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index)}
        subprocess.run(["bash", str(script)], env=environment, check=True, capture_output=True)
        _, _, submit = sweep.launch_on_slurm(elastic, tmp_path, jobs=3)
    assert submit is None
    assert (tmp_path / "results.csv").read_text() == (whole / "results.csv").read_text()
