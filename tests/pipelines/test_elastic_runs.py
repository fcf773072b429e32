"""A run for several token counts: resumed exactly, evaluated at each count, and read by the frontier."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_recipes import Crash, CrashAt, metrics_of, vlm_recipe

from vlmkit.errors import UserError
from vlmkit.pipelines.evaluation.evaluate import EvalSettings, evaluate
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.pipelines.vlm_models import load_vlm
from vlmkit.runs import RunDirectory
from vlmkit.scaling.measurements import load_measurements

ELASTIC = {
    "stage": "finetune",
    "compressor.num_visual_tokens": [16, 1, 4],
    "compressor.condition_on": "each",
    "prompt_order": "text_first",
}


@pytest.fixture(scope="module")
def elastic_run(tower_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("elastic") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        train_vlm(vlm_recipe(tower_run, **ELASTIC), out)
    return out


def test_a_run_that_crashed_goes_on_with_the_counts_it_would_have_had(
    elastic_run: Path, tower_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        train_vlm(vlm_recipe(tower_run, **ELASTIC), tmp_path / "run", CrashAt(3))
    train_vlm(vlm_recipe(tower_run, **ELASTIC), tmp_path / "run")
    assert metrics_of(tmp_path / "run", "train/loss") == metrics_of(elastic_run, "train/loss")
    mine, theirs = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "run", elastic_run))
    assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


def test_the_checkpoint_knows_its_counts_and_how_it_was_prompted(elastic_run: Path) -> None:
    config = load_vlm(elastic_run)[0].config
    assert (config.token_counts, config.num_visual_tokens) == ([1, 4, 16], 16)
    assert (config.prompt_order, config.condition_on) == ("text_first", "each")


def test_evaluations_at_several_counts_stand_side_by_side(elastic_run: Path) -> None:
    run, task = RunDirectory(elastic_run), "miniworld:test?scenes=6"
    (at_most,) = evaluate(elastic_run, [task], EvalSettings())
    assert {row.visual_tokens for row in at_most.rows} == {16}
    reports = evaluate(elastic_run, [task], EvalSettings(tokens=(1, 4, 16)))
    assert [{row.visual_tokens for row in report.rows} for report in reports] == [{1}, {4}, {16}]
    assert reports[2].rows == at_most.rows, "the same measurement replaces itself"
    assert len(run.results()) == 3 * len(at_most.rows)
    assert {path.name for path in run.samples_dir.glob("*.jsonl")} == {f"miniworld-{n}.jsonl" for n in (1, 4, 16)}
    measured = load_measurements([elastic_run])
    families = {row.family for row in at_most.rows}
    assert {(row.family, row.visual_tokens) for row in measured.rows} == {(f, n) for f in families for n in (1, 4, 16)}
    for row in run.results():
        (found,) = [m for m in measured.rows if (m.family, m.visual_tokens) == (row.family, row.visual_tokens)]
        assert found.error == pytest.approx(1 - row.value)


def test_counts_that_the_run_does_not_serve_are_refused(elastic_run: Path, vlm_run: Path, tower_run: Path) -> None:
    for run, tokens, words in ((elastic_run, 64, "1, 4, 16"), (vlm_run, 1, "trained for 4"), (tower_run, 4, "tower")):
        with pytest.raises(UserError, match=words):
            evaluate(run, [], EvalSettings(tokens=(tokens,)))
