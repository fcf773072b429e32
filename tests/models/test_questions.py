"""Question vectors: what they are, and that a stored one is never that of other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from vlmkit import registry
from vlmkit.config import CompressorConfig
from vlmkit.models import questions
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.questions import QuestionStates, last_states, mean_embeddings
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.training.distributed import setup

TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=3, heads=2, patch_size=8, image_size=32))
IDS = torch.tensor([[7, 8, 9], [7, 8, 0], [7, 8, 9]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])


def language_model(**options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        **options,
    )
    return AutoModelForCausalLM.from_config(config)


def frozen() -> PreTrainedModel:
    return language_model().eval().requires_grad_(False)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of questions of each pass of the language model."""
    seen: list[int] = []

    def counted(llm: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids))
        return last_states(llm, ids, mask)

    monkeypatch.setattr(questions, "last_states", counted)
    return seen


def test_mean_embeddings_leave_the_padding_out() -> None:
    llm = frozen()
    table = llm.get_input_embeddings().get_parameter("weight")
    vectors = mean_embeddings(llm, IDS, MASK)
    torch.testing.assert_close(vectors, torch.stack([table[[7, 8, 9]].mean(0), table[[7, 8]].mean(0), vectors[0]]))


def test_a_frozen_models_question_is_computed_once_and_alone_in_training(rows: list[int]) -> None:
    llm, states = frozen(), QuestionStates()
    expected = last_states(llm, IDS, MASK)
    for _ in range(2):
        torch.testing.assert_close(states(llm, IDS, MASK), expected)
    assert rows == [1, 1]  # two different questions, however padded and repeated
    longer = torch.tensor([[7, 8, 0, 0]])
    torch.testing.assert_close(states(llm, longer, (longer > 0).long()), expected[1:2])
    assert rows == [1, 1]
    alone = last_states(llm, IDS[1:2, :2], MASK[1:2, :2])
    assert torch.equal(states(llm, IDS, MASK)[1:2], alone)  # to the bit, whatever else was in the batch


def test_at_inference_new_questions_are_computed_together(rows: list[int]) -> None:
    llm, states = language_model().eval(), QuestionStates()
    with torch.no_grad():
        torch.testing.assert_close(states(llm, IDS, MASK), last_states(llm, IDS, MASK))
        states(llm, IDS, MASK)
    assert rows == [2]


def test_the_store_is_bounded_and_keeps_what_was_used_last(rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MAX_BYTES", 2 * 32 * 4)  # two states of width 32
    llm, states = frozen(), QuestionStates()
    for token in (1, 2, 1, 3, 1):  # 3 pushes 2 out, not 1
        states(llm, torch.tensor([[token]]), torch.ones(1, 1, dtype=torch.long))
    assert len(rows) == 3 and len(states) == 2


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_trained_model_never_sees_a_stale_state(mode: str) -> None:
    llm, states = language_model(), QuestionStates()
    optimizer = torch.optim.AdamW(llm.parameters(), lr=1e-2)
    before = last_states(llm, IDS, MASK)
    for _ in range(3):
        llm.eval()  # a validation in between fills the store
        torch.testing.assert_close(states(llm, IDS, MASK), last_states(llm, IDS, MASK))
        llm.train(mode == "train")
        optimizer.zero_grad()
        llm(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        torch.testing.assert_close(states(llm, IDS, MASK), last_states(llm, IDS, MASK))
    assert not torch.allclose(last_states(llm, IDS, MASK), before, atol=0.1)
    if mode == "train":
        assert len(states) == 0


def test_loading_other_weights_empties_the_store() -> None:
    llm, states = frozen(), QuestionStates()
    states(llm, IDS, MASK)
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_config(llm.config)
    llm.load_state_dict(other.state_dict())
    torch.testing.assert_close(states(llm, IDS, MASK), last_states(other, IDS, MASK))


class Asking(nn.Module):
    """A model that asks its language model about the questions above."""

    def __init__(self, llm: PreTrainedModel) -> None:
        super().__init__()
        self.llm, self.states = llm, QuestionStates()

    def forward(self) -> torch.Tensor:
        return self.states(self.llm, IDS, MASK)


def test_a_sharded_model_runs_for_every_batch_so_that_no_rank_waits_for_another() -> None:
    model = Asking(frozen())
    expected = model()
    assert len(model.states) == 2
    mesh = init_device_mesh("cpu", (setup("cpu").world_size,))
    for part in [*model.llm.get_decoder().layers, model]:
        fully_shard(part, mesh=mesh)
    torch.testing.assert_close(model(), expected)
    assert len(model.states) == 0


def test_dropout_does_not_reach_the_question_and_modes_are_left_as_they_were() -> None:
    llm = language_model(attention_dropout=0.5).train()
    llm.get_decoder().layers[0].eval()
    modes = [part.training for part in llm.modules()]
    first = last_states(llm, IDS, MASK)
    assert torch.equal(first, last_states(llm, IDS, MASK)) and not first.requires_grad
    assert [part.training for part in llm.modules()] == modes


def vlm(query: str) -> VLM:
    compressor = CompressorConfig(name="quecc", num_visual_tokens=4, query=query)  # type: ignore[arg-type]
    return VLM.join(VisionTower(TOWER), language_model(), compressor, 5, 0)


@pytest.mark.parametrize("query", ["llm", "embed_mean", "none"])
def test_each_encoder_conditions_as_the_recipe_says_and_is_saved(query: str, tmp_path: Path) -> None:
    model = vlm(query).eval()
    model.save_pretrained(tmp_path)
    model = VLM.from_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    asked = [{"query_input_ids": IDS[row : row + 1], "query_attention_mask": MASK[row : row + 1]} for row in (0, 1)]
    assert model.compressor.conditioned == (query != "none")
    if query == "none":
        assert torch.equal(model.visual_tokens(pixels), model.visual_tokens(pixels, **asked[0]))
    else:
        assert not torch.allclose(model.visual_tokens(pixels, **asked[0]), model.visual_tokens(pixels, **asked[1]))


@pytest.mark.parametrize("query", ["llm", "embed_mean"])
def test_no_gradient_flows_through_the_question(query: str) -> None:
    model = vlm(query).train()
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    model.visual_tokens(pixels, query_input_ids=IDS, query_attention_mask=MASK).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.language_model.parameters())
    assert all(parameter.grad is not None for parameter in model.compressor.parameters())
