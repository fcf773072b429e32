"""Captioning: a tiny tower, a toy language of colours, and CIDEr over it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vlmkit.config import OptimConfig, TrainConfig
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.evals.caption import PROMPT, CaptionConversations, caption, caption_benchmark
from vlmkit.evals.scoring.case import Case, score_cases
from vlmkit.evals.scoring.cider import CiderD
from vlmkit.models.vision_tower import VisionTower, tower_config

CAPTIONS = {
    "red": ("a large red square on black", "one red square"),
    "green": ("the letters k 9 in a green field", "green letters"),
    "blue": ("nothing but blue", "blue all over the picture"),
}


class Colours:
    """Plain squares, each with both captions of its colour; some have empty captions or none."""

    fingerprint = "ab"

    def __init__(self, size: int, wordless: tuple[int, ...] = ()) -> None:
        self.size, self.wordless = size, wordless

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> CaptionSample:
        pixels = np.random.default_rng(index).integers(0, 60, (16, 16, 3), dtype=np.uint8)
        pixels[..., index % 3] += 150
        captions = () if index in self.wordless else (*list(CAPTIONS.values())[index % 3], "  ")
        return CaptionSample(pixels, captions)


@pytest.fixture
def tower() -> VisionTower:
    config = tower_config("ViT-mini-8-64", image_size=16)
    config["model_cfg"]["embed_dim"] = 32
    config["model_cfg"]["vision_cfg"] |= {"width": 32, "layers": 2, "head_width": 16}
    torch.manual_seed(0)
    return VisionTower(config)


def test_a_caption_source_is_a_set_of_requests_with_every_caption_as_an_answer() -> None:
    conversations = CaptionConversations(Colours(4, wordless=(2,)))
    sample = conversations[1]
    assert [(turn.question, turn.answer) for turn in sample.turns] == [(PROMPT, text) for text in CAPTIONS["green"]]
    assert sample.independent and len(sample.images) == 1 and len(conversations) == 4
    with pytest.raises(BadSample, match="no caption"):
        conversations[2]


def test_the_benchmark_scores_against_all_captions_of_the_corpus() -> None:
    benchmark = caption_benchmark(CaptionConversations(Colours(6, wordless=(3,))))
    (question,) = benchmark.questions(benchmark.samples[0])
    assert (question.prompt, question.references) == (PROMPT, CAPTIONS["red"])
    references = [list(CAPTIONS.values())[index % 3] for index in (0, 1, 2, 4, 5)]
    corpus = CiderD(references)
    for text in ("one red square", "a green square"):
        cases: list[Case] = [{"prediction": text, "references": captions} for captions in references]
        scores = [case["score"] for case in score_cases(benchmark.rule, cases)]
        assert scores == pytest.approx([corpus.score(text, captions) / 10 for captions in references])
        assert max(scores) > 0


@pytest.mark.slow
def test_a_captioner_learns_to_name_what_the_frozen_tower_shows(tower: VisionTower, tmp_path: Path) -> None:
    budget = TrainConfig(
        steps=80, global_batch_size=12, device="cpu", optim=OptimConfig(lr=3e-3, warmup=5, weight_decay=0.0)
    )
    fingerprint = tower.fingerprint()
    outcome = caption(
        tower, Colours(60), Colours(9), budget=budget, batch_size=4, records_path=tmp_path / "caption.jsonl"
    )
    assert tower.fingerprint() == fingerprint
    said = [record.prediction for record in outcome.records]
    assert all(said[index] in list(CAPTIONS.values())[index % 3] for index in range(9)), said
    written = [json.loads(line) for line in (tmp_path / "caption.jsonl").read_text().splitlines()]
    assert [record["score"] for record in written] == [record.score for record in outcome.records]
    corpus = CiderD([record.references for record in outcome.records])
    assert written[0]["score"] == pytest.approx(corpus.score(said[0], CAPTIONS["red"]) / 10)
