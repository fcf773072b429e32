"""LLaVA checkpoints where a VLM run is accepted, and VLM runs as LLaVA checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_recipes import TRAIN, vlm_recipe
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from vlmkit.cli.app import app
from vlmkit.config import CompressorConfig, LLMConfig
from vlmkit.data.conversations.conversations import stop_tokens
from vlmkit.errors import UserError
from vlmkit.models.llm import load_llm
from vlmkit.models.processor import VLMProcessor
from vlmkit.models.vision_tower import build_tower
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.ask import AskSettings, Assistant
from vlmkit.pipelines.evaluation.evaluate import EvalSettings, evaluate
from vlmkit.pipelines.export import export_run
from vlmkit.pipelines.plans import plan_vlm
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.pipelines.vlm_models import load_vlm
from vlmkit.runs import RunDirectory
from vlmkit.tasks.vlm import VLMTask

SHORT = {**TRAIN, "steps": 2}
PATCHES = 64


def full_grid_run(path: Path) -> VLM:
    """A run whose visual tokens are all patches, as if trained."""
    llm, tokenizer = load_llm(LLMConfig(name="nano"), seed=0)
    choice = CompressorConfig(name="none", num_visual_tokens=PATCHES)
    vlm = VLM.join(build_tower("ViT-mini-8-64"), llm, choice, tokenizer.convert_tokens_to_ids("<image>"), 0).eval()
    run = RunDirectory(path)
    compressor = {"compressor.name": "none", "compressor.num_visual_tokens": PATCHES}
    run.prepare(vlm_recipe("ViT-mini-8-64", **compressor), {}, {})
    with run.writing_model() as scratch:
        VLMTask(vlm, tokenizer, "finetune").export(str(scratch))
    return vlm


@torch.no_grad()
def test_a_run_goes_out_as_llava(tmp_path: Path) -> None:
    vlm = full_grid_run(tmp_path / "run")
    assert export_run(tmp_path / "run", "llava", tmp_path / "out") is None
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    assert model.generation_config.eos_token_id == stop_tokens(load_vlm(tmp_path / "run")[1])
    messages = [{"role": "user", "content": "<image>\nwhat color is it"}]
    processors = [AutoProcessor.from_pretrained(tmp_path / path) for path in ("out", "run/model")]
    texts = [processor.apply_chat_template(messages, add_generation_prompt=True) for processor in processors]
    assert texts[0] == texts[1] and isinstance(processors[1], VLMProcessor)
    image = torch.randint(0, 256, (3, 30, 50), dtype=torch.uint8)
    inputs = [processor(images=[image], text=texts[0], return_tensors="pt") for processor in processors]
    torch.testing.assert_close(model(**inputs[0]).logits, vlm(**inputs[1]).logits, rtol=1e-5, atol=1e-5)
    own = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model").eval()
    assert torch.equal(own(**inputs[1]).logits, vlm(**inputs[1]).logits)


def test_a_compressed_run_is_refused_and_leaves_nothing(vlm_run: Path, tower_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no place for the compressor avgpool with 4 of 64"):
        export_run(vlm_run, "llava", tmp_path / "out")
    with pytest.raises(UserError, match="pretrain-superclass run, but a train-vlm run is needed"):
        export_run(tower_run, "llava", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_training_starts_from_a_llava_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "cache"))
    vlm = full_grid_run(tmp_path / "run")
    checkpoint = tmp_path / "llava"
    export_run(tmp_path / "run", "llava", checkpoint)
    choice = {"compressor.name": "quecc", "compressor.num_visual_tokens": 16}
    recipe = vlm_recipe("nowhere", init=str(checkpoint), stage="align", align=SHORT, **choice)
    facts = dict(plan_vlm.plan(recipe, tmp_path / "out").facts)
    assert str(checkpoint) in facts["llm"] and str(checkpoint) in facts["tower"]
    train_vlm(recipe, tmp_path / "out")
    trained, _ = load_vlm(tmp_path / "out")
    kept, given = trained.language_model.state_dict(), vlm.language_model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in given.items())
    assert trained.config.compressor == "quecc" and trained.config.num_visual_tokens == 16


def test_a_llava_checkpoint_is_evaluated_as_the_run_it_came_from(tmp_path: Path) -> None:
    full_grid_run(tmp_path / "run")
    export_run(tmp_path / "run", "llava", tmp_path / "llava")
    tasks, settings = ["miniworld:test?scenes=4"], EvalSettings(out=tmp_path / "out")
    rows = [evaluate(tmp_path / "run", tasks, EvalSettings())[0].rows]
    rows.append(evaluate(tmp_path / "llava", tasks, settings)[0].rows)
    first, second = (
        [json.loads(line)["prediction"] for line in lines.read_text().splitlines()]
        for lines in (tmp_path / name / "samples" / "miniworld.jsonl" for name in ("run", "out"))
    )
    assert first == second and first
    assert [row.value for row in rows[0]] == [row.value for row in rows[1]]
    assert rows[1][0].llm == str(tmp_path / "llava") and rows[1][0].visual_tokens == PATCHES
    with pytest.raises(UserError, match="with --tasks"):
        evaluate(tmp_path / "llava", [], settings)
    with pytest.raises(UserError, match="not a run directory"):
        evaluate(tmp_path, tasks, EvalSettings())


def test_a_llava_checkpoint_is_asked_as_the_run_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full_grid_run(tmp_path / "run")
    export_run(tmp_path / "run", "llava", tmp_path / "llava")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    replies = []
    for name in ("run", "llava"):
        arguments = ["ask", str(tmp_path / name), str(tmp_path / "noise.png"), "what color is it", "--json"]
        app([*arguments, "--max-new-tokens", "5", "--device", "cpu"], standalone_mode=False)
        replies.append(json.loads(capsys.readouterr().out))
    assert replies[0] == replies[1] and replies[0][0]["answer"] and replies[0][0]["visual_tokens"] == PATCHES
    with pytest.raises(UserError, match=f"trained for {PATCHES}"):
        Assistant(tmp_path / "llava", AskSettings(tokens=4))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match=r"no LLaVA-1\.5 checkpoint"):
        Assistant(tmp_path / "other", AskSettings())
