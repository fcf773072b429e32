"""Recipes: precedence, strictness, resume comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.errors import UserError
from vlmkit.recipe import load_recipe, load_yaml, parse_override, parse_recipe, resume_conflicts


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_then_file_then_override(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "seed: 3\ntrain: {optim: {lr: 1e-4, weight_decay: 0.3}}\n")
    resolved = load_recipe("pretrain-superclass", recipe, {"train.optim.lr": 5e-4})
    assert isinstance(resolved, PretrainRecipe)
    assert (resolved.seed, resolved.train.optim.lr, resolved.train.optim.weight_decay) == (3, 5e-4, 0.3)
    assert resolved.train.global_batch_size == PretrainRecipe().train.global_batch_size


def test_superclip_needs_a_loss_that_counts() -> None:
    weights = {"objective.class_weight": 0.0, "objective.contrastive_weight": 0.0}
    with pytest.raises(UserError, match="learns nothing"):
        load_recipe("pretrain-superclass", None, {"objective.name": "superclip", **weights})
    assert load_recipe("pretrain-superclass", None, weights)


def test_a_given_length_replaces_the_default_length() -> None:
    resolved = load_recipe("pretrain-superclass", None, {"train.steps": 7})
    assert (resolved.train.steps, resolved.train.samples) == (7, None)  # type: ignore[attr-defined]


def test_nested_sections_keep_the_defaults_of_their_command() -> None:
    resolved = load_recipe("sweep", None, {"llms": ["nano"], "tokens": [1], "base.finetune.steps": 5})
    finetune = resolved.base.finetune  # type: ignore[attr-defined]
    assert (finetune.steps, finetune.optim.betas) == (5, VLMRecipe().finetune.optim.betas)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"trian.steps": 1}, ["no key trian", "train"]),
        ({"train.optim.lrr": 1}, ["no key train.optim.lrr", "train.optim.lr"]),
        ({"train.optim.lr": "fast"}, ["train.optim.lr", "number", "'fast'"]),
        ({"train.steps": 0}, ["train.steps", "greater than 0"]),
        ({"train.steps": 5, "train.epochs": 1}, ["exactly one of steps, samples, epochs"]),
        ({"train.global_batch_size": 6, "train.micro_batch_size": 4}, ["no multiple"]),
        ({"labels.idf": "sometimes"}, ["labels.idf", "running"]),
        ({"labels.idf": "corpus", "labels.idf_frozen_after": 9}, ["idf_frozen_after is for idf running", "corpus"]),
        ({"labels.idf": "none", "labels.idf_frozen_after": 9}, ["idf_frozen_after is for idf running", "none"]),
        ({"data.max_bad_fraction": 2}, ["data.max_bad_fraction"]),
        ({"data.train": {"wds:a.tar": -1}}, ["not valid: data.train.wds:a.tar: input should be greater than 0"]),
        ({"train.optim.schedule": "linear"}, ["train.optim.schedule", "cosine"]),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(overrides: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_recipe("pretrain-superclass", None, overrides)
    for word in words:
        assert word in str(error.value)


def test_a_recipe_for_another_command_is_refused(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "command: train-vlm\n")
    with pytest.raises(UserError, match="recipe for `vlmkit train-vlm`"):
        load_recipe("pretrain-superclass", recipe, {})


@pytest.mark.parametrize("text", ["a: [1, 2", "- just\n- a list\n", "\x00"])
def test_an_unreadable_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"r\.yaml"):
        load_yaml(write(tmp_path / "r.yaml", text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no recipe"):
        load_yaml(tmp_path / "none.yaml")


def test_overrides_are_yaml_values() -> None:
    assert parse_override("a.b=1e-3") == ("a.b", 1e-3)
    assert parse_override("a=[1, 2]") == ("a", [1, 2])
    assert parse_override("a=null") == ("a", None)
    with pytest.raises(UserError, match="no `=`"):
        parse_override("a.b")


@pytest.mark.parametrize("command", ["pretrain-superclass", "train-vlm"])
def test_a_resolved_recipe_reads_back_equal(command: str, tmp_path: Path) -> None:
    resolved = load_recipe(command, None, {})
    path = write(tmp_path / "r.yaml", resolved.to_yaml())
    assert parse_recipe(command, load_yaml(path), origin="file") == resolved


def test_sections_that_are_given_stay_as_they_are() -> None:
    section = {"steps": 9, "optim": {"lr": 0.1}}
    resolved = load_recipe("pretrain-superclass", None, {"train": section, "train.steps": 2, "train.optim.lr": 0.2})
    assert isinstance(resolved, PretrainRecipe) and (resolved.train.steps, resolved.train.optim.lr) == (2, 0.2)
    assert section == {"steps": 9, "optim": {"lr": 0.1}}


def test_only_what_changes_the_result_blocks_a_resume() -> None:
    before = load_recipe("pretrain-superclass", None, {"train.steps": 10})
    harmless = {"train.steps": 20, "train.num_workers": 2, "train.log.every_steps": 1, "train.checkpoint.keep": 5}
    harmless["train.micro_batch_size"] = 8
    assert resume_conflicts(before, load_recipe("pretrain-superclass", None, harmless)) == []
    other = load_recipe("pretrain-superclass", None, {"train.steps": 10, "train.optim.lr": 0.5, "seed": 1})
    assert resume_conflicts(before, other) == ["seed: 0 -> 1", "train.optim.lr: 0.0016 -> 0.5"]


def test_language_models_with_weights_get_the_published_stages_and_fresh_ones_their_own() -> None:
    seven = load_recipe("train-vlm", None, {"llm.name": "7b"})
    assert isinstance(seven, VLMRecipe)
    for stage, lr, batch in ((seven.align, 1e-3, 256), (seven.finetune, 2e-5, 128)):  # LLaVA-1.5
        assert (stage.optim.lr, stage.global_batch_size, stage.epochs, stage.optim.weight_decay) == (lr, batch, 1, 0)
    assert seven.max_length == 2048
    tiny = load_recipe("train-vlm", None, {"llm.name": "tiny", "finetune.epochs": 3})
    assert isinstance(tiny, VLMRecipe)
    assert tiny.finetune.optim.lr > 1e-4 and (tiny.finetune.epochs, tiny.finetune.steps) == (3, None)


def test_a_given_length_replaces_that_of_a_run_to_resume(tmp_path: Path) -> None:
    path = write(tmp_path / "recipe.yaml", load_recipe("pretrain-superclass", None, {}).to_yaml())
    longer = load_recipe("pretrain-superclass", path, {"train.steps": 9})
    assert isinstance(longer, PretrainRecipe)
    assert (longer.train.steps, longer.train.samples) == (9, None)
