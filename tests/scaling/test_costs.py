"""Cost models: against models that answer, worked by hand, and what they refuse."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch_flops import counted

from vlmkit import registry
from vlmkit.config import CompressorConfig, LLMConfig
from vlmkit.errors import UserError
from vlmkit.models.llm import load_llm
from vlmkit.models.vision_tower import build_tower
from vlmkit.models.vlm import VLM
from vlmkit.scaling.budgets import Unit, parse_budgets
from vlmkit.scaling.cost import FullCost, LLMCost, MemoryCost, VisionSide, limits
from vlmkit.scaling.measurements import SizedLLM, load_published
from vlmkit.scaling.workload import Workload

MICRO = SizedLLM("micro", 0.0001, registry.llm("micro").num_params)
QWEN = load_published().find_llm("7b")


def small_vlm(compressor: str, count: int, query: Literal["llm", "none"] = "llm", seed: int = 0) -> VLM:
    """The registry's micro behind its smallest tower, in float32."""
    llm, tokenizer = load_llm(LLMConfig(name="micro"), seed)
    config = CompressorConfig(name=compressor, num_visual_tokens=count, query=query)
    tower = build_tower("ViT-mini-8-64", 8 * round(count**0.5) if compressor == "downsample" else None)
    return VLM.join(tower, llm, config, tokenizer.get_vocab()["<image>"], seed).eval().requires_grad_(False)


def answer_flops(vlm: VLM, text: int, new: int) -> int:
    """What torch counts while the model answers about one image."""
    place = torch.full((1, vlm.config.num_visual_tokens), vlm.config.image_token_id)
    ids = torch.cat([place, torch.ones(1, text, dtype=torch.long)], dim=1)
    side = vlm.vision_tower.image_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {"pixel_values": torch.zeros(1, 3, side, side, dtype=torch.uint8)}
    if vlm.compressor.conditioned:
        inputs |= {"query_input_ids": ids[:, -text:], "query_attention_mask": torch.ones(1, text, dtype=torch.long)}
    return counted(lambda: vlm.generate(**inputs, max_new_tokens=new, min_new_tokens=new, pad_token_id=0))


@pytest.mark.parametrize(
    ("compressor", "query", "count", "text", "new"),
    [
        ("avgpool", "llm", 1, 60, 5),
        ("avgpool", "llm", 64, 3, 1),
        ("quecc", "llm", 16, 60, 3),
        ("quecc", "none", 16, 3, 3),
        ("downsample", "llm", 16, 3, 2),
    ],
)
def test_full_cost_is_what_torch_counts_of_an_answer(compressor, query, count, text, new):
    vision = VisionSide(registry.vision_tower("ViT-mini-8-64"), compressor, query)
    cost = FullCost(Workload(text, new), vision).cost(MICRO, count)
    assert cost == pytest.approx(answer_flops(small_vlm(compressor, count, query), text, new), rel=1e-9)


def test_cost_of_a_7b_worked_by_hand():
    work = Workload(text_tokens=50, new_tokens=3)
    parts = FullCost(work, VisionSide.of()).parts(QWEN, 144)
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    tokens = 50 + 144
    assert parts["prefill"] == 2 * 32 * layer * tokens + 4 * 32 * 4096 * tokens**2 + 2 * 151936 * 4096
    assert parts["decode"] == 2 * (2 * 32 * layer + 2 * 151936 * 4096) + 4 * 32 * 4096 * (tokens + 1 + tokens + 2)
    assert parts["compressor"] == 2 * 144 * (1024 * 4096 + 4096**2)
    assert parts["query pass"] == 0
    # CLIP-L/336 is about 0.38 TFLOP an image.
    assert parts["tower"] == pytest.approx(0.37e12, rel=0.05)
    assert FullCost(work, VisionSide.of()).cost(QWEN, 144) == sum(parts.values())


def test_cached_text_is_attended_to_and_not_read_again():
    vision, layers = VisionSide.of(compressor="quecc"), 32
    fresh = FullCost(Workload(50), vision).parts(QWEN, 16)
    cached = FullCost(Workload(50, cached_text=True), vision).parts(QWEN, 16)
    assert fresh["query pass"] > 0 == cached["query pass"]
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    assert cached["prefill"] == 2 * layers * layer * 16 + 4 * layers * 4096 * 16 * 66 + 2 * 151936 * 4096
    assert {name: fresh[name] for name in ("tower", "compressor")} == {
        name: cached[name] for name in ("tower", "compressor")
    }
    assert LLMCost(Workload(50)).cost(QWEN, 16) == 2 * 7e9 * 66
    assert LLMCost(Workload(50, cached_text=True)).cost(QWEN, 16) == 2 * 7e9 * 16


def test_a_smaller_image_makes_a_cheaper_tower():
    cost = FullCost(Workload(), VisionSide.of(image_size=224)).parts(QWEN, 64)
    assert cost["tower"] < 0.5 * FullCost(Workload(), VisionSide.of()).parts(QWEN, 64)["tower"]
    with pytest.raises(UserError, match="ViT-L-14-336 makes 256 patches of an image of 224 pixels, too few for 576"):
        FullCost(Workload(), VisionSide.of(image_size=224)).cost(QWEN, 576)
    with pytest.raises(UserError, match="multiple of 14"):
        VisionSide.of(image_size=225)


def test_memory_is_that_of_weights_and_cache():
    vlm = small_vlm("quecc", 16)
    held = sum(weight.numel() for weight in vlm.parameters())
    vision = VisionSide.of("ViT-mini-8-64", "quecc")
    assert MemoryCost(Workload(20, 5, batch_size=3), vision, "fp32").cost(MICRO, 16) == 4 * (
        held + 3 * 2 * 2 * 64 * (20 + 16 + 4)
    )
    # 7.7 billion weights in two bytes each, beside the tower.
    parts = MemoryCost(Workload(50), VisionSide.of(), "bf16").parts(QWEN, 576)
    assert parts["llm"] == 2 * registry.llm("7b").num_params
    assert parts["kv cache"] == 2 * 2 * 32 * 4096 * 626


def test_models_without_a_shape_have_no_full_cost():
    own = SizedLLM("runs/llm", 1.0, 10**9)
    assert LLMCost(Workload()).cost(own, 1) == 2e9 * 51
    with pytest.raises(UserError, match="full needs the shape of runs/llm"):
        FullCost(Workload(), VisionSide.of()).cost(own, 1)


@pytest.mark.parametrize("numbers", [{"text_tokens": -1}, {"new_tokens": 0}, {"batch_size": 0}])
def test_impossible_workloads_are_refused(numbers):
    with pytest.raises(UserError, match=r"cannot be negative|at least 1"):
        Workload(**numbers)


def test_each_budget_limits_the_model_of_its_unit():
    work, vision = Workload(50), VisionSide.of()
    models = {model.unit: model for model in (LLMCost(work), MemoryCost(work, vision, "bf16"))}
    flops, memory = limits(parse_budgets(["5e12", "12GB"]), models)
    assert flops.model.name == "llm" and flops.allows(QWEN, 144) and not flops.allows(QWEN, 576)
    assert memory.model.name == "memory" and not memory.allows(QWEN, 144)
    with pytest.raises(UserError, match="50 ms needs a cost model that counts ms; measure times with `vlmkit bench`"):
        limits(parse_budgets(["50ms"]), models)
    assert models[Unit.bytes].format(15.4e9) == "15.4 GB"
