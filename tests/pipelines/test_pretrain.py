"""What a pretraining run leaves beside its model, and what it says on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image
from small_recipes import Crash, pretrain_recipe

from vlmkit.evals.label_report import read_label_report
from vlmkit.pipelines.pretrain import pretrain
from vlmkit.training.trainer import Trainer


class Display:
    """Remembers [description, units done, units in all, finished] of what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[object]] = []

    def start(self, total_steps: int, step: int, description: str) -> None:
        self.shown.append([description, step, total_steps, False])

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.shown[-1][1] = step

    def finish(self) -> None:
        self.shown[-1][3] = True


def test_a_run_that_classifies_reports_its_labels_before_its_model_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_power(trainer: Trainer, directory: Path) -> None:
        raise Crash

    recipe = pretrain_recipe(**{"data.val": None})
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Trainer, "export", no_power)
        pretrain(recipe, tmp_path)
    assert not (tmp_path / "model").exists()
    for _ in range(2):
        report = read_label_report(tmp_path)
        assert (report.samples, report.captions) == (64, 192) and report.weights_high and report.weights_low
        with Image.open(tmp_path / "label_report.png") as picture:
            assert min(picture.size) > 400
        outcome = pretrain(recipe, tmp_path)
        assert (tmp_path / "model").is_dir()
    assert outcome.already_finished


def test_a_run_that_matches_captions_has_no_labels_to_report(tmp_path: Path) -> None:
    pretrain(pretrain_recipe(**{"objective.name": "clip", "data.val": None, "train.steps": 1}), tmp_path)
    assert (tmp_path / "model").is_dir() and not list(tmp_path.glob("label_report*"))


def test_passes_over_the_captions_are_shown_and_what_is_kept_already_is_not(tmp_path: Path) -> None:
    recipe = pretrain_recipe(
        **{"labels": {"tokenizer": "word", "min_captions": 2, "idf": "corpus"}, "data.val": None, "train.steps": 1}
    )
    for run, passes in (("first", 2), ("second", 0)):
        display = Display()
        pretrain(recipe, tmp_path / run, display)
        assert display.shown == [["captions", 64, 64, True]] * passes + [["pretrain", 1, 1, True]]
