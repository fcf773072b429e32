"""The pretraining task under every objective: losses, accumulation, metrics, groups, frozen towers, exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import layer_norm, log_softmax, normalize, softplus
from toy_captions import OBJECTIVES, VOCAB, Labels, make_batch, make_task, parts_of, recipe

from vlmkit.config import ObjectiveConfig, OptimConfig, TrainConfig
from vlmkit.contracts import Batch
from vlmkit.data.corpus import CorpusCounts
from vlmkit.errors import UserError
from vlmkit.losses.contrastive import contrastive_loss
from vlmkit.losses.token_frequency import TokenFrequency
from vlmkit.models.contrastive import load_contrastive
from vlmkit.models.open_clip_layout import export_open_clip
from vlmkit.models.superclass import SuperClassHead
from vlmkit.models.vision_tower import build_tower
from vlmkit.registry import VISION_TOWERS
from vlmkit.tasks import build, contrastive
from vlmkit.tasks.build import build_task, needs
from vlmkit.tasks.classification import ClassificationObjective
from vlmkit.tasks.parameter_groups import parameter_groups
from vlmkit.tasks.pretraining import PretrainingTask
from vlmkit.training import distributed
from vlmkit.training.optim import Optimizer

BATCH = make_batch(range(8))


def step(task: PretrainingTask, micro_batches: list[Batch], autocast: bool = False) -> tuple[float, dict[str, Any]]:
    """Loss of an optimizer step, as the trainer computes it; gradients by parameter."""
    task.train().zero_grad()
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with bf16:
        num_targets = task.begin_step(micro_batches)
    assert num_targets == sum(len(batch["pixel_values"]) for batch in micro_batches)
    loss = 0.0
    for batch in micro_batches:
        with bf16:
            output = task(batch)
        (output.loss_sum / num_targets).backward()
        loss += output.loss_sum.item() / num_targets
    return loss, {name: parameter.grad for name, parameter in task.named_parameters()}


def dense_weights(ids: torch.Tensor, weight_of: Callable[[int], float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Which classes are labels, and their weights: [B, V] each."""
    present = torch.zeros(len(ids), VOCAB, dtype=torch.float64)
    for row, caption in enumerate(ids.tolist()):
        present[row, [c for c in caption if c >= 0]] = 1
    return present, present * torch.tensor([weight_of(c) for c in range(VOCAB)], dtype=torch.float64)


def document_frequency(ids: torch.Tensor) -> list[int]:
    return [sum(c in caption for caption in ids.tolist()) for c in range(VOCAB)]


@pytest.mark.parametrize("idf", ["running", "corpus", "none"])
@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_classification_is_the_formula_with_the_weights_asked_for(loss: str, idf: str) -> None:
    counts = CorpusCounts(torch.arange(VOCAB).numpy(), 100)
    settings = recipe("superclass", **{"objective.loss": loss, "labels.idf": idf})
    task = build_task(settings, Labels(), counts if idf == "corpus" else None).double()  # type: ignore[arg-type]
    other = make_batch(range(8, 20))
    task.begin_step([other, BATCH])
    seen = [sum(counts) for counts in zip(*(document_frequency(b["label_ids"]) for b in (other, BATCH)), strict=True)]
    weight_of = {
        "running": lambda c: float(torch.tensor(21 / (seen[c] + 1), dtype=torch.float64).log()),
        "corpus": lambda c: float(torch.tensor(101 / (c + 1), dtype=torch.float64).log()),
        "none": lambda c: 1.0,
    }[idf]
    present, weights = dense_weights(BATCH["label_ids"], weight_of)
    logits = task.classification.head(task.tower.pooled(BATCH["pixel_values"]))  # type: ignore[union-attr]
    if loss == "softmax":
        expected = -(weights / weights.sum(1, keepdim=True) * log_softmax(logits, 1)).sum()
    else:
        expected = (weights * softplus(-logits) + (1 - present) * softplus(logits)).sum()
    torch.testing.assert_close(task(BATCH).loss_sum, expected, rtol=1e-6, atol=0)


def test_every_classification_loss_can_be_chosen_and_all_differ() -> None:
    losses = [
        step(make_task("superclass", **{"objective.loss": name}), [BATCH])[0]
        for name in ("softmax", "bce", "asl", "soft_margin", "two_way")
    ]
    assert len({round(loss, 6) for loss in losses}) == 5


def test_superclip_is_the_weighted_sum_of_both_from_the_features_published_for_it() -> None:
    weights = {"objective.class_weight": 0.5, "objective.contrastive_weight": 2.0}
    task = make_task("superclip", **weights).double()
    assert task.tower.pooling == "tok"
    task.begin_step([BATCH])
    output = task(BATCH)
    parts = {name: float(total) for name, (total, _) in output.metrics.items()}
    assert output.loss_sum.item() == pytest.approx(
        0.5 * parts["train/classification_loss"] + 2 * parts["train/contrastive_loss"]
    )
    patches = make_task("superclip", **{"tower.pooling": "avg"}).double().tower
    patches.load_state_dict(task.tower.state_dict())
    assert task.classification is not None and task.contrastive is not None
    classes = task.classification.loss_sum(patches.pooled(BATCH["pixel_values"]), BATCH)
    contrast = task.contrastive.loss_sum(task.tower.pooled(BATCH["pixel_values"]), BATCH)
    assert parts["train/classification_loss"] == pytest.approx(classes.item())
    assert parts["train/contrastive_loss"] == pytest.approx(contrast.item())


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("objective", "loss_name"),
    [*((name, "softmax") for name in OBJECTIVES), ("superclass", "two_way"), ("superclip", "two_way")],
)
def test_accumulation_changes_neither_loss_nor_gradients(objective: str, loss_name: str, count: int) -> None:
    task = make_task(objective, **{"objective.loss": loss_name}).double()
    fresh = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    loss, gradients = step(task, [BATCH])
    task.load_state_dict(fresh)
    split_loss, split_gradients = step(task, parts_of(BATCH, count))
    assert split_loss == pytest.approx(loss, rel=1e-6)  # label weights are float32
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(split_gradients[name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("loss", ["softmax", "two_way"])
def test_held_out_losses_know_nothing_of_the_training_step(loss: str) -> None:
    task = make_task("superclip", **{"objective.loss": loss})
    task.begin_step([BATCH])
    before = task.eval().validation_metrics(BATCH)
    task.load_state_dict(make_task("superclip").state_dict())
    task.begin_step(parts_of(BATCH, 2))
    assert task.validation_metrics(BATCH) == before


def test_a_contrastive_step_cut_short_leaves_nothing_behind() -> None:
    """DDP discards a first pass over one micro-batch of several; the next step is none the worse."""
    task = make_task("clip")
    parts = parts_of(BATCH, 4)
    task.begin_step(parts)
    task(parts[0])
    assert step(task, [BATCH])[0] == pytest.approx(step(make_task("clip"), [BATCH])[0])


def test_accumulation_keeps_its_gradients_under_autocast() -> None:
    """In one autocast region, weights cast without gradients must not serve the passes that need them."""
    task = make_task("superclip")
    _, expected = step(task, [BATCH])
    _, gradients = step(make_task("superclip"), parts_of(BATCH, 2), autocast=True)
    task = make_task("superclip").train()
    with torch.autocast("cpu", torch.bfloat16):
        task.begin_step(parts_of(BATCH, 2))
        for part in parts_of(BATCH, 2):
            (task(part).loss_sum / 8).backward()
    one_region = {name: parameter.grad for name, parameter in task.named_parameters()}
    for name, gradient in expected.items():
        for mine in (gradients[name], one_region[name]):
            assert mine is not None, name
            assert torch.nn.functional.cosine_similarity(mine.flatten(), gradient.flatten(), dim=0) > 0.97, name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_on_fixed_captions_learns_them(objective: str) -> None:
    task, batch = make_task(objective).eval(), make_batch(range(16))
    task.begin_step([batch])
    before = task.validation_metrics(batch)["val/loss"][0]
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    for _ in range(10):
        step(task, [batch])
        optimizer.step()
    metrics = task.eval().validation_metrics(batch)
    assert metrics["val/loss"][0] < 0.8 * before
    expected = {"val/loss"}
    if objective in ("superclass", "superclip"):
        expected |= {"val/recall@5", "val/recall@20"}
    if objective != "superclass":
        expected |= {"val/image_to_text@1", "val/image_to_text@5"}
    if objective == "superclip":
        expected |= {"val/classification_loss", "val/contrastive_loss"}
    assert metrics.keys() == expected and {weight for _, weight in metrics.values()} == {16.0}


def test_validation_changes_no_state_and_recall_is_counted_by_hand() -> None:
    task, batch = make_task("superclass").eval(), make_batch(range(9))
    assert task.classification is not None
    logits = task.classification.head(task.tower.pooled(batch["pixel_values"]))
    batch["label_ids"] = torch.nn.functional.pad(batch["label_ids"], (0, 6), value=-1)[:, :6]
    batch["label_ids"][3] = -1
    batch["label_ids"][4] = logits[4].topk(6).indices  # six labels, all found: recall is 1
    task.begin_step([batch])
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    metrics = task.validation_metrics(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())
    order = logits.argsort(1, descending=True).tolist()
    for k in (5, 20):
        recalls = []
        for ranking, ids in zip(order, batch["label_ids"].tolist(), strict=True):
            labels = {c for c in ids if c >= 0}
            if labels:
                recalls.append(len(labels & set(ranking[:k])) / min(k, len(labels)))
        total, weight = metrics[f"val/recall@{k}"]
        assert total == pytest.approx(sum(recalls)) and weight == len(recalls) == 8
    assert metrics["val/loss"] == (pytest.approx(task(batch).loss_sum.item()), 9)


def test_recall_of_a_vocabulary_below_twenty() -> None:
    task = make_task("superclass")
    assert task.classification is not None
    task.classification = ClassificationObjective(SuperClassHead(128, 7), TokenFrequency(7), Labels())  # type: ignore[arg-type]
    batch = make_batch(range(6))
    batch["label_ids"] = torch.arange(6)[:, None]
    task.begin_step([batch])
    assert task.eval().validation_metrics(batch)["val/recall@20"] == (6, 6)


def test_retrieval_is_counted_by_hand_and_equal_captions_are_as_good() -> None:
    task, batch = make_task("clip").eval(), make_batch(range(9))
    batch["text_ids"][3:8] = batch["text_ids"][2]
    assert task.contrastive is not None
    with torch.no_grad():
        images = task.contrastive.head.embed_image(task.tower.pooled(batch["pixel_values"]))
        similarity = images @ task.contrastive.head.embed_text(batch["text_ids"]).T
    order = similarity.argsort(1, descending=True).tolist()
    captions = [tuple(row) for row in batch["text_ids"].tolist()]
    metrics = task.validation_metrics(batch)
    for k in (1, 5):
        hits = sum(captions[i] in {captions[j] for j in order[i][:k]} for i in range(9))
        assert metrics[f"val/image_to_text@{k}"] == (hits, 9)
    small = task.validation_metrics(make_batch(range(3)))
    assert small["val/image_to_text@5"] == (3, 3), "of three captions, five hold all"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_parameter_groups_cover_all_and_decay_matrices_only(objective: str) -> None:
    task = make_task(objective)
    names = {id(p): n for n, p in task.named_parameters()}
    groups = task.parameter_groups(OptimConfig(lr=1e-3, weight_decay=0.2, lr_multipliers={"vision_tower": 0.5}))
    assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            vector = any(part in name for part in ("ln_", "norm", "bias", "class_embedding", "logit_"))
            assert group["weight_decay"] == (0.0 if vector else 0.2), name
            assert group["lr"] == (5e-4 if name.startswith("tower.") else 1e-3), name
            assert ("limits" in group) == name.endswith("logit_scale"), name
    with pytest.raises(UserError, match="projector"):
        task.parameter_groups(OptimConfig(lr_multipliers={"projector": 2.0}))


@pytest.mark.parametrize("name", VISION_TOWERS)
def test_weight_decay_spares_what_the_published_training_spares(name: str) -> None:
    """Norms, biases and the logit scale by name, and all vectors; of every tower of the registry."""
    with torch.device("meta"):
        modules = nn.ModuleList(build.parts_of(recipe("superclip", **{"tower.name": name}), 9).values())
    groups = parameter_groups({"all": modules.parameters()}, OptimConfig(weight_decay=0.2), owner="all")
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for key, parameter in modules.named_parameters():
        spared = parameter.ndim < 2 or any(part in key for part in ("bn", "ln", "norm", "bias", "logit_scale"))
        assert (id(parameter) in decayed) == (not spared), key


@pytest.mark.parametrize("objective", ["clip", "siglip"])
def test_the_loss_reads_float32_scalars_from_a_model_that_is_cast(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP2 in bf16 casts what it shards, and 1 / 0.07 is no bf16 number."""
    scalars: list[torch.Tensor] = []

    def spy(
        kind: str, images: torch.Tensor, texts: torch.Tensor, *others: torch.Tensor, **options: bool
    ) -> torch.Tensor:
        scalars.extend(others)
        return contrastive_loss(kind, images, texts, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(contrastive, "contrastive_loss", spy)
    task = make_task(objective)
    names = list(task.state_dict())
    expected = list(make_task(objective).contrastive.head.scalars())  # type: ignore[union-attr]
    train = TrainConfig(steps=1, precision="bf16", parallel="fsdp", device="cpu")
    model = distributed.wrap(task, train, distributed.setup("cpu"))
    for micro_batches in ([BATCH], parts_of(BATCH, 2)):
        task.begin_step(micro_batches)
        for batch in micro_batches:
            output = model(batch)
            output.loss_sum.backward()
            total, weight = output.metrics["train/logit_scale"]
            assert float(total) / weight == pytest.approx(expected[0].exp().item(), rel=1e-6)
    task.validation_metrics(BATCH)
    assert len(scalars) == 3 * len(expected)
    for index, value in enumerate(scalars):
        assert torch.equal(value, expected[index % len(expected)])
    assert list(task.state_dict()) == names


def test_the_logit_scale_stays_at_or_below_100() -> None:
    task = make_task("siglip")
    assert task.contrastive is not None
    head = task.contrastive.head
    torch.nn.init.constant_(head.logit_scale, 4.6)
    optimizer = Optimizer(task, OptimConfig(lr=0.1, warmup=0), total_steps=10)
    for parameter in task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    head.logit_scale.grad = torch.tensor([-1.0])
    optimizer.step(0)
    assert head.logit_scale.exp().item() == pytest.approx(100) and head.logit_bias.item() == -10  # type: ignore[union-attr]
    head.logit_scale.grad = torch.tensor([5.0])
    optimizer.step(1)
    assert head.logit_scale.exp().item() < 100, "it can come back down"


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported tower that pools its class token."""
    directory = tmp_path_factory.mktemp("tower")
    export_open_clip(build_tower("ViT-mini-8-64", seed=5, pooling="tok"), directory)
    return directory


def test_lit_leaves_its_tower_bit_for_bit_and_takes_its_pooling(tower: Path) -> None:
    task = make_task("lit", **{"tower.name": str(tower)}).train()
    fingerprint = build_tower(tower).fingerprint()
    assert task.tower.pooling == "tok" and task.tower.fingerprint() == fingerprint and not task.tower.training
    optimizer = Optimizer(task, OptimConfig(lr=1e-3), total_steps=5)
    trained = {id(p) for p in optimizer.parameters}
    assert trained == {id(p) for n, p in task.named_parameters() if n.startswith("contrastive.")}
    losses = []
    for index in range(5):
        losses.append(step(task, parts_of(BATCH, 2))[0])
        optimizer.step(index)
    assert losses[-1] < losses[0] and task.tower.fingerprint() == fingerprint
    assert all(p.grad is None for p in task.tower.parameters())


def test_lit_runs_its_tower_once_over_each_micro_batch(tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("lit", **{"tower.name": str(tower)})
    expected, _ = step(task, [BATCH])
    run, sizes = task.tower.pooled, []

    def counted(pixel_values: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixel_values))
        return run(pixel_values)

    monkeypatch.setattr(task.tower, "pooled", counted)
    task.begin_step(parts_of(BATCH, 4))
    task(parts_of(BATCH, 4)[0])  # a step cut short, as DDP's discarded pass is
    sizes.clear()
    assert step(task, parts_of(BATCH, 4))[0] == pytest.approx(expected, rel=1e-5) and sizes == [2, 2, 2, 2]
    task.eval().validation_metrics(BATCH)
    assert sizes[4:] == [8]


def test_lit_reads_cached_features_in_place_of_pixels(tower: Path) -> None:
    task = make_task("lit", **{"tower.name": str(tower)})
    with torch.no_grad():
        features = task.tower.pooled(BATCH["pixel_values"])
    cached = {**BATCH, "image_features": features}
    del cached["pixel_values"]
    loss, _ = step(task, [BATCH])
    task.begin_step([cached])
    assert task(cached).loss_sum.item() / 8 == pytest.approx(loss)
    half = {**cached, "image_features": features.half()}
    assert task(half).loss_sum.item() / 8 == pytest.approx(loss, rel=1e-2)


def test_lit_refuses_fresh_towers_and_other_poolings(tower: Path) -> None:
    with pytest.raises(UserError, match="fresh weights"):
        make_task("lit")
    with pytest.raises(UserError, match="pooling tok"):
        make_task("lit", **{"tower.name": str(tower), "tower.pooling": "avg"})


def test_what_objectives_read_of_captions() -> None:
    expected = {
        "superclass": {"label_ids"},
        "clip": {"text_ids"},
        "siglip": {"text_ids"},
        "lit": {"text_ids"},
        "superclip": {"label_ids", "text_ids"},
    }
    for name, keys in expected.items():
        assert needs(ObjectiveConfig(name=name)) == keys  # type: ignore[arg-type]


def test_counters_survive_a_cast_and_travel_in_the_state_dict() -> None:
    task = make_task("superclip")
    task.begin_step([BATCH])
    other = make_task("superclip").to(torch.bfloat16)
    other.load_state_dict(task.state_dict())
    assert task.classification is not None and other.classification is not None
    assert torch.equal(
        other.classification.frequency.document_frequency, task.classification.frequency.document_frequency
    )
    assert other.classification.frequency.num_documents.item() == 8


def test_the_text_width_of_attention_pooling_is_checked_before_training() -> None:
    with pytest.raises(UserError, match="embed_dim to 128"):
        make_task("clip", **{"tower.pooling": "map"})
    assert make_task("clip", **{"tower.pooling": "map", "objective.text.embed_dim": 128}).tower.pooling == "map"


@torch.no_grad()
@pytest.mark.parametrize("objective", ["clip", "siglip", "superclip", "lit"])
def test_an_export_loads_in_open_clip_with_equal_image_and_text_features(
    objective: str, tower: Path, tmp_path: Path
) -> None:
    given = {"tower.name": str(tower)} if objective == "lit" else {}
    task = make_task(objective, **given).eval()
    task.export(str(tmp_path))
    assert task.contrastive is not None
    images = task.contrastive.head.embed_image(task.tower.pooled(BATCH["pixel_values"]))
    texts = task.contrastive.head.embed_text(BATCH["text_ids"])
    peer = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    pixels = task.tower._normalised(BATCH["pixel_values"])
    torch.testing.assert_close(normalize(peer.encode_image(pixels), dim=1), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normalize(peer.encode_text(BATCH["text_ids"]), dim=1), texts, rtol=1e-4, atol=1e-5)
    assert peer.logit_scale.item() == task.contrastive.head.logit_scale.item()
    assert (peer.logit_bias is not None) == (objective == "siglip")
    again = load_contrastive(tmp_path).eval()
    assert torch.equal(again.encode_image(BATCH["pixel_values"]), images)
    assert torch.equal(again.encode_text(BATCH["text_ids"]), texts)
    assert (tmp_path / "superclass_head.safetensors").is_file() == (objective == "superclip")


@torch.no_grad()
def test_a_classification_export_holds_tower_head_counts_and_tokenizer(tmp_path: Path) -> None:
    task = make_task("superclass").eval()
    task.begin_step([BATCH])
    task.export(str(tmp_path))
    assert build_tower(tmp_path).fingerprint() == task.tower.fingerprint()
    assert task.classification is not None
    pooled = build_tower(tmp_path).pooled(BATCH["pixel_values"])
    head = load_file(tmp_path / "superclass_head.safetensors")
    normed = layer_norm(pooled, (128,), head["norm.weight"], head["norm.bias"])
    torch.testing.assert_close(normed @ head["head.weight"].T + head["head.bias"], task.classification.head(pooled))
    counts = load_file(tmp_path / "token_counts.safetensors")
    assert counts["num_documents"] == 8
    assert counts["document_frequency"].tolist() == document_frequency(BATCH["label_ids"])
    assert (tmp_path / "tokenizer.json").is_file()
