"""``vlmkit eval`` on towers: which tasks fit which run, what is recorded, and what is computed once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_recipes import pretrain_recipe

from vlmkit import registry
from vlmkit.config import LabelConfig, TextTowerConfig
from vlmkit.data.caption_tokenizers import build_label_tokenizer
from vlmkit.data.sources.opener import open_captions
from vlmkit.errors import UserError
from vlmkit.evals import caption, finetune
from vlmkit.evals.label_report import label_report
from vlmkit.evals.probes import linear_mae
from vlmkit.losses.token_frequency import TokenFrequency
from vlmkit.models.contrastive import ContrastiveHead, text_config
from vlmkit.models.open_clip_layout import export_open_clip
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower, tower_config
from vlmkit.pipelines.evaluation import evaluate_tower, tower_subject
from vlmkit.pipelines.evaluation.evaluate import RANDOM_TOWER, EvalSettings, evaluate
from vlmkit.runs import RunDirectory

LIMIT = 60
SETTINGS = EvalSettings(limit=LIMIT, device="cpu")
ATTRIBUTES = ["color", "shape", "count", "first_character"]


def make_run(path: Path, objective: str, seed: int = 0) -> RunDirectory:
    """A finished run of the objective on a tiny tower with fresh weights."""
    run = RunDirectory(path)
    run.prepare(pretrain_recipe(**{"objective.name": objective, "seed": seed}), {}, {})
    config = tower_config("ViT-mini-8-64")
    config["model_cfg"]["embed_dim"] = 32
    config["model_cfg"]["vision_cfg"] |= {"width": 32, "layers": 2, "head_width": 16}
    with seeded(1):
        tower = VisionTower(config)
    text = None
    if objective != "superclass":
        text_cfg, embed_dim = text_config(32, TextTowerConfig(width=16, layers=1, heads=2))
        text = ContrastiveHead(32, text_cfg, embed_dim).text_part()
    with run.writing_model() as directory:
        export_open_clip(tower, directory, text=text)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run", "superclass")


def test_the_default_is_the_quick_linear_probe_beside_a_random_tower(run: RunDirectory) -> None:
    (report,) = evaluate(run.path, [], SETTINGS)
    assert [line[0] for line in report.table] == ATTRIBUTES
    assert any(f"At most {LIMIT} images of each set" in note for note in report.notes)
    rows = run.results()
    assert [(row.family, row.variant) for row in rows] == [
        (attribute, variant) for attribute in ATTRIBUTES for variant in ("", RANDOM_TOWER)
    ]
    assert all((row.benchmark, row.metric, row.limit) == ("linear_probe", "accuracy", LIMIT) for row in rows)
    assert all(row.llm is None and 0 <= row.value <= 1 and row.num_samples > 0 for row in rows)


def test_large_sets_are_probed_by_lars(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_mae, "EPOCHS", 2)
    monkeypatch.setattr(evaluate_tower, "SMALL_SET", LIMIT - 1)
    (report,) = evaluate(run.path, [], SETTINGS)
    assert {(row.benchmark, row.scoring) for row in run.results()} == {("linear_probe_mae", "lars")}
    assert "without augmentation" in report.notes[0] and "searched on held-out training images" in report.notes[0]


def test_probes_share_one_pass_over_the_images(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = tower_subject.probe_splits
    monkeypatch.setattr(tower_subject, "probe_splits", lambda *args, **kw: calls.append(1) or compute(*args, **kw))
    reports = evaluate(run.path, ["few_shot", "knn", "linear_probe"], SETTINGS)
    assert len(calls) == 1 and len(reports) == 3
    shots = [(row.family, row.variant) for row in run.results() if row.benchmark == "few_shot"]
    assert shots[:6] == [
        ("color", variant) for shots in ("1-shot", "5-shot", "10-shot") for variant in (shots, f"{shots}, random tower")
    ]
    assert len(shots) == len(set(shots)) == 6 * len(ATTRIBUTES)
    assert "±" in reports[0].table[0][1] and "±" not in reports[1].table[0][1]


def test_progress_is_shown_from_start_to_end(run: RunDirectory) -> None:
    class Display:
        """What a display of progress is told: titles, and how far each got."""

        def __init__(self) -> None:
            self.shown: list[list[object]] = []

        def start(self, total_steps: int, step: int, description: str) -> None:
            self.shown.append([description, total_steps, step])

        def update(self, step: int, metrics: object) -> None:
            self.shown[-1][2] = step

        def finish(self) -> None:
            self.shown[-1].append("finished")

    display = Display()
    evaluate(run.path, ["knn"], SETTINGS, display)
    assert display.shown == [["features", 2 * LIMIT, 2 * LIMIT, "finished"], ["knn", 4, 4, "finished"]]


def test_fine_tuning_is_beside_a_random_tower_with_the_same_budget(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "BUDGET", finetune.BUDGET.model_copy(update={"epochs": 0.5}))
    model = (run.model_dir / "open_clip_model.safetensors").read_bytes()
    (report,) = evaluate(run.path, ["finetune"], SETTINGS)
    assert [line[0] for line in report.table] == ATTRIBUTES and "0.5 epochs" in report.notes[0]
    assert {row.variant for row in run.results()} == {"", RANDOM_TOWER}
    assert (run.model_dir / "open_clip_model.safetensors").read_bytes() == model


def test_captions_are_scored_and_kept(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption, "BUDGET", caption.BUDGET.model_copy(update={"steps": 2}))
    evaluate(run.path, ["caption"], EvalSettings(limit=6, device="cpu"))
    trained, random = run.results()
    assert (trained.metric, trained.variant, random.variant) == ("cider", "", RANDOM_TOWER)
    records = [json.loads(line) for line in (run.samples_dir / "caption.jsonl").read_text().splitlines()]
    assert trained.num_samples == len(records) == 6 and all(len(record["references"]) == 3 for record in records)
    assert trained.value == pytest.approx(sum(record["score"] for record in records) / 6)
    assert trained.llm is None


@pytest.mark.parametrize("objective", ["clip", "lit"])
def test_a_run_with_a_text_tower_classifies_without_training(tmp_path: Path, objective: str) -> None:
    run = make_run(tmp_path / "run", objective)
    (report,) = evaluate(run.path, ["zero_shot"], SETTINGS)
    assert [line[0] for line in report.table] == ATTRIBUTES
    assert [(row.benchmark, row.family, row.variant) for row in run.results()] == [
        ("zero_shot", attribute, "") for attribute in ATTRIBUTES
    ]


def test_zero_shot_of_a_classification_run_explains_lit_with_the_command(run: RunDirectory) -> None:
    recipe = f"{run.path}/recipe.yaml"
    command = f"`vlmkit pretrain-superclass --recipe {recipe} --objective lit --tower {run.path} --out {run.path}-lit`"
    with pytest.raises(UserError) as refusal:
        evaluate(run.path, ["linear_probe", "zero_shot"], SETTINGS)
    assert command in str(refusal.value) and "LiT" in str(refusal.value)
    assert not run.results_path.exists()


def test_the_command_is_one_for_the_shell(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run; of mine", "superclass")
    with pytest.raises(UserError) as refusal:
        evaluate(run.path, ["zero_shot"], SETTINGS)
    arguments = shlex.split(str(refusal.value).split("`")[1])
    assert arguments[2:4] == ["--recipe", str(run.recipe_path)] and arguments[-1] == f"{run.path}-lit"
    assert arguments[arguments.index("--tower") + 1] == str(run.path)


def test_an_unknown_task_is_refused_with_the_nearest_of_those_that_fit(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no task 'linear-prob'; did you mean linear_probe\?") as refusal:
        evaluate(run.path, ["linear-prob"], SETTINGS)
    assert "zero_shot" not in str(refusal.value) and "label_report" in str(refusal.value)
    clip = make_run(tmp_path / "clip", "clip")
    with pytest.raises(UserError, match=r"objective clip.*no task 'label_report'.*zero_shot"):
        evaluate(clip.path, ["label_report"], SETTINGS)


def test_the_label_report_is_the_runs_own_or_of_given_captions(run: RunDirectory) -> None:
    source = open_captions("miniworld:train?scenes=40")
    tokenizer = build_label_tokenizer(LabelConfig(), source, run.path)
    frequency = TokenFrequency(tokenizer.vocab_size)
    frequency.update([torch.from_numpy(tokenizer.bag("a red star"))[None]])
    label_report(source, tokenizer, LabelConfig()).write(run.path)
    tokenizer.save(run.model_dir)
    save_file(frequency.state_dict(), run.model_dir / "token_counts.safetensors")
    (own,) = evaluate(run.path, ["label_report"], SETTINGS)
    (given,) = evaluate(run.path, ["label_report"], EvalSettings(train_data="miniworld:val?scenes=30", device="cpu"))
    assert "120 of 40 samples" in own.table[0][1] and "90 of 30 samples" in given.table[0][1]
    lines = dict(given.table)
    assert "star" in lines["lightest"] and "star" not in lines["heaviest"]
    assert own.rows == given.rows == []


def test_what_is_done_is_recorded_even_if_a_later_task_fails(run: RunDirectory) -> None:
    with pytest.raises(UserError, match=r"label_report\.json"):
        evaluate(run.path, ["knn", "label_report"], SETTINGS)
    assert {row.benchmark for row in run.results()} == {"knn"}


def test_every_task_is_in_the_registry() -> None:
    listed = [facts.name for facts in registry.BENCHMARKS.values() if facts.subject == "tower"]
    assert listed == list(evaluate_tower.TASKS)


def test_the_random_tower_is_drawn_from_the_runs_seed(tmp_path: Path) -> None:
    def first_weight(name: str, seed: int) -> torch.Tensor:
        run = make_run(tmp_path / name, "superclass", seed=seed)
        subject = tower_subject.TowerSubject(run, run.recipe(), SETTINGS, None)
        return subject.towers()[RANDOM_TOWER].visual.conv1.weight

    weights = first_weight("a", seed=0), first_weight("b", seed=1)
    assert not torch.equal(*weights) and torch.equal(weights[1], first_weight("c", seed=1))


@pytest.mark.parametrize(
    ("task", "settings", "missing"),
    [
        ("knn", {"train_data": "folder:photos"}, "--test-data"),
        ("knn", {"test_data": "folder:photos"}, "--train-data"),
        ("finetune", {"test_data": "folder:photos"}, "--train-data"),
        ("zero_shot", {"train_data": "folder:photos"}, "--test-data"),
        ("label_report", {"test_data": "folder:photos"}, "--train-data"),
    ],
)
def test_one_of_two_sets_is_not_filled_up_with_the_embedded_world(
    task: str, settings: dict[str, str], missing: str
) -> None:
    (option,) = {"--train-data", "--test-data"} - {missing}
    with pytest.raises(UserError, match=f"{option} folder:photos is given, but {task} reads {missing}"):
        evaluate_tower.check_data([task], EvalSettings(**settings))
    evaluate_tower.check_data([task], EvalSettings(train_data="folder:a", test_data="folder:b"))
    evaluate_tower.check_data([task], EvalSettings())


def test_sets_that_a_task_does_not_read_may_be_missing(run: RunDirectory) -> None:
    evaluate_tower.check_data(["zero_shot"], EvalSettings(test_data="folder:photos"))
    evaluate_tower.check_data(["label_report"], EvalSettings(train_data="wds:shards"))
    with pytest.raises(UserError, match="linear_probe reads --test-data"):
        evaluate(run.path, [], EvalSettings(train_data="miniworld:train"))
