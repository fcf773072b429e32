"""What commands on towers print: eval, export and study from the outside."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from vlmkit.cli.app import main
from vlmkit.models.open_clip_layout import export_open_clip
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower, tower_config
from vlmkit.recipe import load_recipe
from vlmkit.runs import RunDirectory

ATTRIBUTES = ("color", "shape", "count", "first_character")


@pytest.fixture
def tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a finished classification run, tiny and fresh, in the working directory."""
    monkeypatch.chdir(tmp_path)
    config = tower_config("ViT-mini-8-64")
    config["model_cfg"]["embed_dim"] = 32
    config["model_cfg"]["vision_cfg"] |= {"width": 32, "layers": 2, "head_width": 16}
    run = RunDirectory("run")
    run.prepare(load_recipe("pretrain-superclass", None, {"data.train": "miniworld:train?scenes=64"}), {}, {})
    with seeded(1), run.writing_model() as directory:
        export_open_clip(VisionTower(config), directory)
    return "run"


class Shell:
    """Runs ``vlmkit`` commands; what is no terminal has 80 columns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, command: str, code: int = 0) -> tuple[str, str]:
        """stdout, and stderr with white space folded, of a command that ends with exit code ``code``."""
        self._monkeypatch.setattr(sys, "argv", ["vlmkit", *shlex.split(command)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, error = self._capsys.readouterr()
        assert (stop.value.code or 0) == code, error
        return out, " ".join(error.split())


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def test_tables_of_probes_fit_eighty_columns_and_cut_no_name(tower: str, shell: Shell) -> None:
    out, _ = shell(f"eval {tower} --tasks knn,few_shot -t linear_probe --limit 60")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split("  ")[0] for line in lines]
    assert all(names.count(name) == 2 for name in ATTRIBUTES), "of knn and the linear probe"
    assert all(f"{name}, {shots}-shot" in names for name in ATTRIBUTES for shots in (1, 5, 10))
    headers = [line.split() for line in lines if line.startswith("attribute")]
    assert headers == [["attribute", "tower", "random", "gain", "2", "s.e.", "chance", "images"]] * 3
    assert "C = " in out and out.count("At most 60 images of each set") == 3


def test_rows_are_one_json_document(tower: str, shell: Shell) -> None:
    out, _ = shell(f"eval {tower} --tasks knn --limit 60 --json")
    assert [row["family"] for row in json.loads(out)[tower]][::2] == list(ATTRIBUTES)


def test_one_of_two_sets_is_refused(tower: str, shell: Shell) -> None:
    _, error = shell(f"eval {tower} --train-data folder:photos", code=2)
    assert "reads --test-data, which is missing" in error


def test_the_lit_command_that_zero_shot_gives_can_be_run(tower: str, shell: Shell) -> None:
    _, error = shell(f"eval {tower} --tasks zero_shot", code=2)
    _, plan = shell(error.split("`")[1].removeprefix("vlmkit ") + " --dry-run")
    assert "frozen" in plan and "miniworld:train?scenes=64" in plan, "the run's own data, not the default's"


@pytest.mark.parametrize(
    ("layout", "file", "note"),
    [
        ("open_clip", "open_clip_model.safetensors", "The text tower is a placeholder"),
        ("transformers", "model.safetensors", "model.post_layernorm(outputs.last_hidden_state)[:, 1:].mean(dim=1)"),
        ("timm", "model.safetensors", "Wrote out for timm."),
    ],
)
def test_an_export_says_what_it_wrote_and_how_to_read_it(
    layout: str, file: str, note: str, tower: str, shell: Shell
) -> None:
    out, error = shell(f"export {tower} --layout {layout} --out out")
    assert out == "" and note in error and "it/s" not in error
    assert Path("out", file).is_file()


def test_a_dry_run_of_a_study_says_what_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(
        "command: study\narms: {superclass: {}, clip: {objective.name: clip}}\nequal_seconds: {clip: superclass}\n"
        "lit: [superclass]\nbase: {train: {samples: 640, global_batch_size: 64}}\n"
    )
    out, plan = shell("study --recipe study.yaml --dry-run")
    assert "12: 4 arms, 3 seeds each" in plan and "120 of all runs together" in plan
    assert "superclass, clip, clip at equal seconds, LiT on superclass" in plan
    assert "clip at equal seconds" in out and "0 of 3" in out
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]
