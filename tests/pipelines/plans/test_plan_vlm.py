"""The plan of a VLM run against what torch counts and holds when the same model trains."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_recipes import vlm_recipe
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlmkit.cli.app import main
from vlmkit.config import LLMConfig, TrainConfig
from vlmkit.contracts import IMAGE_TOKEN, Batch
from vlmkit.data.conversations.conversation_loader import ConversationLoader
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.conversations.packing import ConversationItem, PackingCollate
from vlmkit.data.feature_cache import FEATURES, cache_root
from vlmkit.data.images import PadTransform, decode_image
from vlmkit.data.sources.opener import open_conversations
from vlmkit.models.llm import load_llm
from vlmkit.models.vision_tower import build_tower
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.plans import plan_vlm
from vlmkit.pipelines.plans.plan_flops import MeanSample, PartFlops, flops_per_sample
from vlmkit.pipelines.plans.plan_memory import Memory, MicroBatch, memory_per_device
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.pipelines.vlm_models import Stage
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training.optim import Optimizer

TOWER, TOKENS = "ViT-mini-8-64", 4
WORLD = "miniworld:train?scenes=64"
CASES = [("avgpool", "align"), ("avgpool", "finetune"), ("quecc", "align"), ("quecc", "finetune")]


def recipe_of(compressor: str, **overrides: object):  # type: ignore[no-untyped-def]
    return vlm_recipe(TOWER, **{"llm.name": "micro", "compressor.name": compressor, **overrides})


def real(compressor: str, stage: Stage) -> tuple[VLMTask, Callable[[int], Batch], ConversationEncoder]:
    """The task of a small run, and its batches by their number of samples."""
    recipe = recipe_of(compressor)
    llm, tokenizer = load_llm(LLMConfig(name="micro"), 0)
    vlm = VLM.join(build_tower(TOWER).eval(), llm, recipe.compressor, tokenizer.get_vocab()[IMAGE_TOKEN], 0)
    encoder = ConversationEncoder(tokenizer, TOKENS, 512, vlm.compressor.conditioned)
    load = ConversationLoader(open_conversations(WORLD), encoder, 64)
    collate = PackingCollate(512, tokenizer.pad_token_id)
    return VLMTask(vlm, tokenizer, stage), lambda count: collate([load(i, 0) for i in range(count)]), encoder


def one_question(encoder: ConversationEncoder) -> Batch:
    """A batch of one row that holds a single question about a single image."""
    sample = open_conversations(WORLD)[0]
    (image,) = sample.read_images()
    sequences = encoder.encode(replace(sample, turns=sample.turns[:1]))
    return PackingCollate(512, 0)([ConversationItem(sequences, PadTransform(64)(decode_image(image))[None])])


def planned(compressor: str, stage: Stage, **overrides: object) -> VLMTask:
    return plan_vlm.planned_task(recipe_of(compressor, **overrides), stage)


@pytest.fixture
def countable() -> Iterator[None]:
    """Attention as matrix products, which is how the counter knows it on a CPU."""
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(True)


def count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("compressor", "stage"), CASES)
def test_flops_are_those_that_torch_counts_in_a_training_step(compressor: str, stage: Stage, countable: None) -> None:
    task, _, encoder = real(compressor, stage)
    batch = one_question(encoder)
    tokens, labels = batch["input_ids"].shape[1], batch["num_targets"]
    question = batch["query_input_ids"].shape[1] if "query_input_ids" in batch else 0
    shape = MeanSample(1, 1, 1, question, tokens - TOKENS, labels, TOKENS)
    parts = flops_per_sample(planned(compressor, stage).model, shape, recompute=False, cached=False)

    model = task.model
    seen: list[torch.Tensor] = []
    assert count(lambda: seen.append(model.cacheable_features(batch["pixel_values"]))) == parts["tower"].forward
    if question:
        ids, mask = batch["query_input_ids"], batch["query_attention_mask"]
        apart = deepcopy(model)  # a frozen language model would store what it reads, and not read it again below
        assert count(lambda: apart.question_vector(ids, mask)) == parts["query pass"].forward
    losses: list[torch.Tensor] = []
    forward = count(lambda: losses.append(task(batch).loss_sum))
    assert forward == sum(part.forward for part in parts.values())
    assert count(lambda: losses[0].backward()) == sum(part.backward for part in parts.values())
    cached = flops_per_sample(planned(compressor, stage).model, shape, recompute=True, cached=True)
    head = 2 * model.get_output_embeddings().weight.numel() * labels
    assert cached["tower"] == PartFlops() and cached["llm"].forward - cached["llm"].recomputed == head


@pytest.mark.parametrize(("compressor", "stage"), CASES)
def test_bytes_of_weights_gradients_and_optimizer_are_exact(compressor: str, stage: Stage) -> None:
    task, batch_of, _ = real(compressor, stage)
    train = TrainConfig(steps=1, global_batch_size=8)
    optimizer = Optimizer(task, train.optim, 1)
    task(batch_of(2)).loss_sum.backward()
    memory = memory_per_device(planned(compressor, stage), train, MicroBatch(2, 2, 1, 64, 8), recipe_of(compressor), 1)
    assert memory.weights == sum(p.nbytes for p in task.parameters())
    assert memory.gradients == sum(p.grad.nbytes for p in task.parameters() if p.grad is not None)
    moments = [v for state in optimizer.adamw.state.values() for name, v in state.items() if name != "step"]
    assert memory.optimizer == sum(moment.nbytes for moment in moments)


@pytest.mark.parametrize(("compressor", "stage"), CASES[1:3])
def test_activations_are_estimated_within_a_third(compressor: str, stage: Stage) -> None:
    task, batch_of, _ = real(compressor, stage)
    batch = batch_of(16)
    rows, length = batch["input_ids"].shape
    blocks = len(batch["image_index"])
    estimated = memory_per_device(
        planned(compressor, stage),
        TrainConfig(steps=1, global_batch_size=16),
        MicroBatch(16, blocks, rows, length, batch["num_targets"]),
        recipe_of(compressor),
        world_size=1,
    )
    batch["image_features"] = task.model.cacheable_features(batch.pop("pixel_values"))
    task(batch).loss_sum.backward()  # gradients exist from here on, and are no part of the peak
    measured = peak_bytes(lambda: task(batch).loss_sum.backward())
    assert 0.75 < (estimated.activations + estimated.logits) / measured < 1.33


def test_a_pass_is_average_samples_packed_with_their_padding() -> None:
    sample, settings = MeanSample(1, 1, 1, 10, 159, 123, 1), TrainConfig(steps=1, global_batch_size=32)
    # 12 of 160 tokens fit a row of 2048: three rows of 1920 places, the last with 8.
    assert MicroBatch.of(sample, settings, 2048, 1) == MicroBatch(32, 32, 3, 1920, 32 * 123, passes=1)
    assert MicroBatch.of(sample, settings, 2048, 4) == MicroBatch(8, 8, 1, 1280, 8 * 123, passes=1)
    limited = settings.model_copy(update={"micro_batch_tokens": 4000})
    assert MicroBatch.of(sample, limited, 2048, 1) == MicroBatch(24, 24, 2, 1920, 24 * 123, passes=2)
    roomy = settings.model_copy(update={"micro_batch_tokens": 6000})
    assert MicroBatch.of(sample, roomy, 2048, 1).passes == 1


def test_gradients_meet_the_activations_only_where_there_are_some_before() -> None:
    def memory(passes: int, world_size: int, **settings: object) -> Memory:
        train = TrainConfig.model_validate({"steps": 1, **settings})
        batch = MicroBatch(8, 8, 4, 128, 64, passes)
        return memory_per_device(planned("quecc", "finetune"), train, batch, recipe_of("quecc"), world_size)

    once, twice, buckets = memory(1, 1), memory(2, 1), memory(1, 2)
    assert once.total + once.gradients == twice.total == buckets.total
    assert memory(1, 2, parallel="fsdp").accumulated == 0


def test_flex_attention_keeps_no_mask() -> None:
    batch = MicroBatch(2, 2, 3, 128, 8)

    def activations(attention: str) -> int:
        recipe = recipe_of("avgpool", **{"llm.attention": attention})
        return memory_per_device(planned("avgpool", "finetune"), recipe.finetune, batch, recipe, 1).activations

    assert activations("sdpa") - activations("flex") == 3 * 128 * 128 * 4


def test_a_gpu_keeps_a_byte_for_each_number_dropped_out() -> None:
    pytest.importorskip("peft")
    recipe = recipe_of("avgpool", stage="finetune", **{"lora.r": 4, "llm.attention": "sdpa"})
    batch = MicroBatch(2, 2, 1, 64, 8)

    def activations(device: str) -> int:
        train = recipe.finetune.model_copy(update={"device": device})
        task = plan_vlm.planned_task(recipe, "finetune")
        return memory_per_device(task, train, batch, recipe, 1).activations

    config = planned("avgpool", "finetune").model.config.text_config
    inputs = 6 * config.hidden_size + config.intermediate_size  # of the seven matrices of a layer
    assert activations("cpu") - activations("cuda") == 3 * 64 * inputs * config.num_hidden_layers


@pytest.mark.parametrize("elastic", ["sampled", "all"])
def test_elastic_runs_read_every_count_or_one_drawn(elastic: str, tmp_path: Path) -> None:
    def stage_of(counts: object) -> dict[str, Any]:
        recipe = recipe_of("avgpool", **{"compressor.num_visual_tokens": counts, "compressor.elastic": elastic})
        return plan_vlm.plan(recipe, tmp_path).figures["stages"]["align"]

    several, single = stage_of([1, 4, 16]), [stage_of(count) for count in (1, 4, 16)]
    flops = [stage["flops_per_sample"]["llm"]["forward"] for stage in single]
    told = several["flops_per_sample"]
    assert told["tower"] == single[0]["flops_per_sample"]["tower"]
    # Attention grows with the square of the length, the plan takes the mean length.
    expected = sum(flops) if elastic == "all" else sum(flops) / 3
    assert told["llm"]["forward"] == pytest.approx(expected, rel=0.01)
    kept = [stage["memory_per_device"]["logits"] for stage in (several, single[-1])]
    assert kept[0] == (pytest.approx(3 * kept[1], rel=0.01) if elastic == "all" else kept[1])


def peak_bytes(run: Callable[[], object]) -> int:
    sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
    from measuring import peak_bytes as measure

    return measure(run, torch.device("cpu"))


def test_shards_divide_the_state_and_add_what_is_gathered() -> None:
    task = partial(planned, "quecc", "finetune")
    batch = MicroBatch(2, 2, 1, 64, 8)
    whole = memory_per_device(task(), TrainConfig(steps=1), batch, recipe_of("quecc"), 8)
    sharded = memory_per_device(task(), TrainConfig(steps=1, parallel="fsdp"), batch, recipe_of("quecc"), 8)
    assert whole.gathered == 0 and whole.optimizer / 8 <= sharded.optimizer < whole.optimizer / 7
    assert sharded.loading == whole.weights
    # Everything but the layers stays whole, and two layers are whole at a time: of two layers, all there is.
    assert sharded.gathered == whole.weights


def test_what_is_frozen_is_held_in_bf16_and_what_is_recomputed_is_not_kept() -> None:
    bf16 = {"align.precision": "bf16", "align.parallel": "fsdp"}
    batch = MicroBatch(8, 8, 4, 128, 64)

    def memory(**overrides: object) -> Memory:
        recipe = recipe_of("quecc", **overrides)
        return memory_per_device(plan_vlm.planned_task(recipe, "align"), recipe.align, batch, recipe, 4)

    exact, half = memory(), memory(**bf16)
    assert half.loading < 0.7 * exact.weights and half.gradients < exact.gradients / 3
    less = memory(**bf16, **{"llm.gradient_checkpointing": True})
    assert less.activations < half.activations and less.weights == half.weights


def test_adapters_are_what_trains_of_the_language_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recipe = recipe_of("avgpool", stage="finetune", **{"lora.r": 4})
    task = plan_vlm.planned_task(recipe, "finetune")
    parts = flops_per_sample(task.model, MeanSample(1, 1, 1, 0, 20, 2, TOKENS), recompute=False, cached=True)
    full = planned("avgpool", "finetune").model
    whole = flops_per_sample(full, MeanSample(1, 1, 1, 0, 20, 2, TOKENS), recompute=False, cached=True)
    assert parts["llm"].forward > whole["llm"].forward and parts["llm"].backward < whole["llm"].backward
    assert plan_vlm.plan(recipe, tmp_path).figures["stages"]["finetune"]["trained_parameters"] < 60_000


def test_the_plan_knows_the_size_of_the_cache_and_whether_there_will_be_one(tower_run: Path, tmp_path: Path) -> None:
    recipe = vlm_recipe(tower_run, stage="align", **{"data.val": None})
    plan = plan_vlm.plan(recipe, tmp_path / "run")
    cache = plan.figures["stages"]["align"]["feature_cache"]
    assert cache["used"] and "--cache-limit 20" in dict(plan.facts)["align features"]
    train_vlm(recipe, tmp_path / "run")
    assert [path.stat().st_size for path in cache_root().rglob(FEATURES)] == [cache["bytes"]]
    limited = recipe.model_copy(update={"cache_limit_gb": (cache["bytes"] - 1) / 1e9})
    plan = plan_vlm.plan(limited, tmp_path / "other")
    assert not plan.figures["stages"]["align"]["feature_cache"]["used"]
    assert "no cache is used" in dict(plan.facts)["align features"]


def test_a_plan_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--vision-tower", TOWER, "--data", WORLD, "--val", "none", "--llm", "7b", "--tokens", "1"]
    monkeypatch.setattr(
        sys, "argv", ["vlmkit", "train-vlm", *arguments, "--cache-limit", "1e-6", "--dry-run", "--json"]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    plan = json.loads(capsys.readouterr().out)
    assert not stop.value.code and plan["command"] == "train-vlm" and "needs" in plan["obstacle"]
    finetune = plan["stages"]["finetune"]
    assert finetune["feature_cache"]["used"] is False
    assert finetune["memory_per_device"]["optimizer"] == 2 * finetune["memory_per_device"]["gradients"]
