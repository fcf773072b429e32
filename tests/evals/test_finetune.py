"""Fine-tuning a tiny tower on colours, and the task it trains."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlmkit.config import OptimConfig, TrainConfig
from vlmkit.data.samples import LabelledSample
from vlmkit.errors import Interrupted, UserError
from vlmkit.evals.finetune import NO_LABEL, ClassificationTask, LabelledLoader, collate_labelled, finetune
from vlmkit.models.vision_tower import VisionTower, build_tower, tower_config

BUDGET = TrainConfig(steps=30, global_batch_size=32, device="cpu", optim=OptimConfig(lr=3e-3, warmup=3))
COLOURS = ["red", "green", "blue"]


class Squares:
    """Noisy squares of one colour each; ``side`` is a coin that the image does not show, for every other one."""

    fingerprint = "0"

    def __init__(self, size: int, seed: int, colours: list[str] = COLOURS) -> None:
        self.classes = {"colour": colours, "side": ["left", "right"]}
        self.rng = np.random.default_rng(seed)
        self.colours, self.sides = self.rng.integers(len(colours), size=size), self.rng.integers(2, size=size)
        self.noise = self.rng.integers(0, 100, (size, 16, 16, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.colours)

    def __getitem__(self, index: int) -> LabelledSample:
        pixels, colour = self.noise[index].copy(), int(self.colours[index])
        pixels[..., COLOURS.index(self.classes["colour"][colour])] += 50
        side = {"side": int(self.sides[index])} if index % 2 else {}
        return LabelledSample(pixels, {"colour": colour, **side})


def tiny_tower() -> VisionTower:
    config = tower_config("ViT-mini-8-64", image_size=16)
    config["model_cfg"]["embed_dim"] = 32
    config["model_cfg"]["vision_cfg"] |= {"width": 32, "layers": 2, "head_width": 16}
    torch.manual_seed(0)
    return VisionTower(config)


def test_colours_are_learned_by_the_whole_tower_and_coins_are_not() -> None:
    tower = tiny_tower()
    before = {name: weight.clone() for name, weight in tower.state_dict().items()}
    colour, side = finetune(tower, Squares(128, 0), Squares(100, 1), budget=BUDGET, batch_size=30)
    assert (colour.attribute, colour.num_samples, side.num_samples) == ("colour", 100, 50)
    assert colour.accuracy > 0.95
    assert side.accuracy == pytest.approx(0.5, abs=4 * side.stderr)
    assert all(not weight.equal(before[name]) for name, weight in tower.state_dict().items())


def test_classes_are_matched_by_name_and_one_never_trained_on_is_wrong() -> None:
    test = Squares(100, 1)
    colour, _ = finetune(tiny_tower(), Squares(128, 0, ["blue", "red"]), test, budget=BUDGET)
    assert colour.accuracy == pytest.approx(np.mean(test.colours != COLOURS.index("green")), abs=0.05)


def test_unrelated_sets_are_refused_before_anything_is_trained() -> None:
    other = Squares(10, 1)
    other.classes = {"breed": ["cat"]}
    tower = tiny_tower()
    fingerprint = tower.fingerprint()
    with pytest.raises(UserError, match="share no attribute"):
        finetune(tower, Squares(10, 0), other, budget=BUDGET)
    assert tower.fingerprint() == fingerprint


def test_a_signal_ends_it_with_nothing_scored() -> None:
    class Interrupting(Squares):
        reads = 0

        def __getitem__(self, index: int) -> LabelledSample:
            self.reads += 1
            if self.reads == 40:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(index)

    with pytest.raises(Interrupted, match="of 30 of the finetune training"):
        finetune(tiny_tower(), Interrupting(64, 0), Squares(10, 1), budget=BUDGET)


def batch_of(source: Squares, indices: range) -> dict[str, torch.Tensor]:
    load = LabelledLoader(source, list(source.classes), 16)
    return collate_labelled([load(index, 0) for index in indices])


def test_loss_is_the_cross_entropy_of_the_labels_there_are() -> None:
    source = Squares(20, 0)
    task = ClassificationTask(tiny_tower().double(), source.classes).double().eval()
    batch = batch_of(source, range(20))
    assert batch["labels"][:, 1].tolist() == [int(source.sides[i]) if i % 2 else NO_LABEL for i in range(20)]
    with torch.no_grad():
        output, logits = task(batch), task.logits(batch["pixel_values"])
    expected = correct = 0.0
    for row, (colour, side) in enumerate(batch["labels"].tolist()):
        for scores, label in ((logits[row, :3], colour), (logits[row, 3:], side)):
            if label != NO_LABEL:
                expected -= float(scores[label] - scores.exp().sum().log())
                correct += float(scores.argmax() == label)
    assert float(output.loss_sum) == pytest.approx(expected, rel=1e-12)
    assert output.num_targets == task.begin_step([batch]) == 30
    assert float(output.metrics["train/accuracy"][0]) == correct
    metrics = task.validation_metrics(batch)
    assert metrics["val/loss"] == (pytest.approx(expected), 30) and metrics["val/accuracy"] == (correct, 30)


def test_the_same_sample_of_an_epoch_is_always_augmented_alike() -> None:
    load = LabelledLoader(Squares(5, 0), ["colour"], 16)
    first, _ = load(3, 1)
    assert first.equal(load(3, 1)[0]) and not first.equal(load(3, 2)[0])


def test_the_export_is_the_tower_and_its_head(tmp_path: Path) -> None:
    task = ClassificationTask(tiny_tower(), Squares(1, 0).classes)
    task.export(str(tmp_path))
    assert build_tower(tmp_path).fingerprint() == task.tower.fingerprint()
    assert load_file(tmp_path / "head.safetensors")["weight"].equal(task.head.weight)
