"""Models that are no runs under ``vlmkit eval``: by path, with results in a place of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_recipes import vlm_recipe
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vlmkit.cli.app import app
from vlmkit.config import CompressorConfig, LLMConfig
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.errors import UserError
from vlmkit.evals.generation import GreedyAnswerer
from vlmkit.evals.transformers_answerer import TransformersAnswerer
from vlmkit.models.llm import load_llm
from vlmkit.models.processor import READS_PARTS
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import build_tower
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.evaluation.evaluate import EvalSettings, evaluate
from vlmkit.pipelines.evaluation.vlm_subject import open_checkpoint
from vlmkit.runs import RunDirectory
from vlmkit.tasks.vlm import VLMTask

TASKS = ["miniworld:test?scenes=6"]
PATCHES = 16


def save_llava(directory: Path, **changes: object) -> None:
    """A random model in LLaVA's layout; without changes it is LLaVA-1.5."""
    vision = {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8, "projection_dim": 16}
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": 2048, "num_key_value_heads": 2, "initializer_range": 0.4}
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    config = LlavaConfig(
        vision_config={**vision, **width},
        text_config={**text, **width, **ids, "_name_or_path": "lmsys/vicuna-7b-v1.5"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **changes,
    )
    with seeded(0):
        LlavaForConditionalGeneration(config).save_pretrained(directory)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=READS_PARTS + tokenizer.chat_template,
    ).save_pretrained(directory)


@pytest.mark.parametrize(
    ("changes", "answerer", "visual_tokens", "compressor"),
    [
        ({}, GreedyAnswerer, PATCHES, "none"),
        ({"vision_feature_select_strategy": "full"}, TransformersAnswerer, PATCHES + 1, None),
    ],
    ids=["llava 1.5", "another llava"],
)
def test_a_model_in_llavas_layout_is_evaluated_by_path(
    changes: dict[str, object],
    answerer: type,
    visual_tokens: int,
    compressor: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_llava(tmp_path / "models" / "odd-llava", **changes)
    before = {path.name for path in (tmp_path / "models" / "odd-llava").iterdir()}
    arguments = ["eval", "models/odd-llava", "--tasks", TASKS[0], "--device", "cpu", "--json"]
    app(arguments, standalone_mode=False)
    ((printed),) = json.loads(capsys.readouterr().out).values()
    results = RunDirectory("runs/odd-llava")
    rows = results.results()
    assert [row.as_dict() for row in rows] == printed and len(rows) > 1
    assert {(row.llm, row.visual_tokens, row.compressor, row.seed) for row in rows} == {
        ("vicuna-7b", visual_tokens, compressor, None)
    }
    assert len((results.samples_dir / "miniworld.jsonl").read_text().splitlines()) == sum(
        row.num_samples for row in rows if row.family
    )
    assert json.loads(results.provenance_path.read_text())["model"] == str(tmp_path / "models" / "odd-llava")
    assert {path.name for path in (tmp_path / "models" / "odd-llava").iterdir()} == before
    subject = open_checkpoint(Path("models/odd-llava"), EvalSettings(device="cpu"))
    assert [type(one) for one in subject.answerers] == [answerer]
    with pytest.raises(UserError, match=f"visual tokens of {visual_tokens}, and no others"):
        evaluate(Path("models/odd-llava"), TASKS, EvalSettings(tokens=(visual_tokens, 4)))


@pytest.mark.parametrize("compressor", ["avgpool", "quecc"])
def test_the_model_of_a_run_answers_through_its_processor_as_the_run_does(compressor: str, tmp_path: Path) -> None:
    """The same weights through other code: transformers' Auto classes and the saved processor, one image a prompt."""
    llm, tokenizer = load_llm(LLMConfig(name="nano"), seed=0)
    choice = CompressorConfig(name=compressor, num_visual_tokens=4)
    vlm = VLM.join(build_tower("ViT-mini-8-64"), llm, choice, tokenizer.convert_tokens_to_ids("<image>"), seed=0)
    run = RunDirectory(tmp_path / "run")
    run.prepare(vlm_recipe("ViT-mini-8-64", **{"compressor.name": compressor}), {}, {})
    with run.writing_model() as scratch:
        VLMTask(vlm.eval(), tokenizer, "finetune").export(str(scratch))
    evaluate(run.path, TASKS, EvalSettings(device="cpu"))
    evaluate(run.model_dir, TASKS, EvalSettings(device="cpu", out=tmp_path / "out"))
    first, second = (
        [(record["id"], record["prediction"]) for record in map(json.loads, lines.read_text().splitlines())]
        for lines in (path / "samples" / "miniworld.jsonl" for path in (run.path, tmp_path / "out"))
    )
    assert first == second and first
    own, other = run.results(), RunDirectory(tmp_path / "out").results()
    sizes = [(row.value, row.visual_tokens, row.total_params, row.llm_params_non_embedding) for row in own]
    assert sizes == [(row.value, row.visual_tokens, row.total_params, row.llm_params_non_embedding) for row in other]


def test_results_of_two_models_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for owner in ("one", "two"):
        save_llava(tmp_path / owner / "llava")
    for _ in range(2):  # a model may go on where its own results are
        evaluate(Path("one/llava"), TASKS, EvalSettings(device="cpu", limit=1))
    with pytest.raises(UserError, match=r"two/llava would go to runs/llava, which holds those of .*one/llava; give"):
        evaluate(Path("two/llava"), TASKS, EvalSettings(device="cpu"))
    run = RunDirectory("runs/a-run")
    run.prepare(vlm_recipe("ViT-mini-8-64"), {}, {})
    with pytest.raises(UserError, match="runs/a-run, which holds a run; give another --out"):
        evaluate(Path("two/llava"), TASKS, EvalSettings(device="cpu", out=run.path))
    with pytest.raises(UserError, match="is a run, and its results stay with it; leave --out out"):
        evaluate(run.path, TASKS, EvalSettings(out=Path("elsewhere")))
    with pytest.raises(UserError, match="with --tasks"):
        evaluate(Path("two/llava"), [], EvalSettings())
    with pytest.raises(UserError, match=r"nobody/nothing is no finished run, and no model can be had by that name"):
        evaluate(Path("nobody/nothing"), TASKS, EvalSettings())
    assert not Path("elsewhere").exists() and not Path("runs/nobody--nothing").exists()
