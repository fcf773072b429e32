"""A finished run is a model: in the next stage, in open_clip, in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_recipes import TRAIN, pretrain_recipe, vlm_recipe

from vlmkit.errors import UserError
from vlmkit.models.vision_tower import build_tower
from vlmkit.pipelines.evaluation.evaluate import EvalSettings, evaluate
from vlmkit.pipelines.pretrain import pretrain
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.pipelines.vlm_models import load_vlm
from vlmkit.runs import RunDirectory


def test_open_clip_loads_a_tower_run(tower_run: Path) -> None:
    import open_clip

    model = open_clip.create_model(f"local-dir:{tower_run / 'model'}").eval()
    tower = build_tower(tower_run)
    images = torch.randn(2, 3, tower.image_size, tower.image_size)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), tower.eval().pooled(images))


def test_the_auto_classes_load_a_vlm_run(vlm_run: Path) -> None:
    from transformers import AutoModelForImageTextToText

    import vlmkit.models  # noqa: F401

    loaded = AutoModelForImageTextToText.from_pretrained(vlm_run / "model").eval()
    vlm, tokenizer = load_vlm(vlm_run)
    ids = torch.tensor([[tokenizer.get_vocab()["<image>"]] * 4 + tokenizer("how many red ones").input_ids])
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = vlm.eval()(input_ids=ids, pixel_values=pixels).logits
        assert torch.equal(loaded(input_ids=ids, pixel_values=pixels).logits, expected)


def test_the_align_stage_is_a_run_of_its_own(vlm_run: Path) -> None:
    align = RunDirectory(vlm_run).align_dir
    vlm, _ = load_vlm(align)
    start, end = (load_vlm(path)[0].language_model.state_dict() for path in (align, vlm_run))
    assert vlm.config.num_visual_tokens == 4
    assert any(not start[name].equal(end[name]) for name in start), "finetune must move the language model"


def test_results_are_recorded_with_what_the_frontier_needs(vlm_run: Path, tower_run: Path) -> None:
    evaluate(vlm_run, ["miniworld:test?scenes=8"], EvalSettings(batch_size=16))
    rows = RunDirectory(vlm_run).results()
    assert {row.family for row in rows} >= {"reasoning", "ocr"}
    assert all((row.llm, row.visual_tokens, row.compressor) == ("nano", 4, "avgpool") for row in rows)
    assert all(row.num_samples > 0 and 0 <= row.value <= 1 and row.data_revision for row in rows)
    evaluate(tower_run, [], EvalSettings(limit=60))
    assert {row.variant for row in RunDirectory(tower_run).results()} == {"", "random tower"}


def test_a_task_for_the_other_kind_of_run_is_refused(vlm_run: Path, tower_run: Path) -> None:
    with pytest.raises(UserError, match="linear_probe"):
        evaluate(tower_run, ["miniworld"], EvalSettings())
    with pytest.raises(UserError, match="not a benchmark for VLMs"):
        evaluate(vlm_run, ["linear_probe"], EvalSettings())


def test_a_finished_run_is_not_trained_again_but_a_longer_one_goes_on(tower_run: Path) -> None:
    weights = (tower_run / "model" / "open_clip_model.safetensors").read_bytes()
    assert pretrain(pretrain_recipe(), tower_run).already_finished
    assert (tower_run / "model" / "open_clip_model.safetensors").read_bytes() == weights
    longer = pretrain(pretrain_recipe(train={**TRAIN, "steps": 8}), tower_run)
    assert longer.step == 8 and not longer.already_finished
    steps = [json.loads(line)["step"] for line in (tower_run / "metrics.jsonl").open() if "train/loss" in line]
    assert steps == list(range(1, 9))


def test_a_local_hub_model_trains_and_evaluates(tower_run: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from vlmkit.data.tokenizer import DIRECTORY

    config = Qwen2Config(
        vocab_size=2100,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(tmp_path / "qwen")
    for compressor in ("avgpool", "quecc"):
        recipe = vlm_recipe(
            tower_run, **{"llm.name": str(tmp_path / "qwen"), "compressor.name": compressor, "stage": "finetune"}
        )
        outcome = train_vlm(recipe, tmp_path / compressor)
        assert outcome.step == TRAIN["steps"] and outcome.metrics["val/loss"] > 0
        report = evaluate(tmp_path / compressor, ["miniworld:test?scenes=6"], EvalSettings())[0]
        assert report.rows[0].llm == str(tmp_path / "qwen")
        assert report.rows[0].llm_params == sum(p.numel() for p in Qwen2ForCausalLM(config).parameters())


def test_what_cannot_be_loaded_leaves_nothing_behind(tower_run: Path, tmp_path: Path) -> None:
    for overrides, words in (
        ({"llm.name": str(tmp_path / "nowhere")}, "nowhere"),
        ({"llm.name": "7b"}, "--llm tiny"),
        ({"compressor.num_visual_tokens": 5}, "1, 4, 16, 64"),
        ({"vision_tower.name": str(tmp_path)}, "not a run directory"),
        ({"data.train": "llava:" + str(tmp_path / "none.json")}, "none.json"),
    ):
        with pytest.raises(UserError, match=words):
            train_vlm(vlm_recipe(tower_run, **{"vision_tower.name": str(tower_run), **overrides}), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_run_of_another_kind_or_an_unfinished_one_is_refused(vlm_run: Path, tower_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a train-vlm run"):
        train_vlm(vlm_recipe(vlm_run), tmp_path / "a")
    unfinished = RunDirectory(tmp_path / "b")
    unfinished.prepare(pretrain_recipe(), {}, {})
    with pytest.raises(UserError, match="has not finished"):
        train_vlm(vlm_recipe(unfinished.path), tmp_path / "c")
    with pytest.raises(UserError, match="has the compressor avgpool with 4"):
        recipe = vlm_recipe(tower_run, init=str(vlm_run), stage="finetune", **{"compressor.num_visual_tokens": 16})
        train_vlm(recipe, tmp_path / "d")
