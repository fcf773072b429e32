import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from vlmkit.config import OptimConfig
from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.seeding import seeded
from vlmkit.models.superclass import SuperClassModel
from vlmkit.models.vision_tower import VisionTower, build_tower
from vlmkit.registry import VisionTowerFacts
from vlmkit.tasks.superclass import SuperClassTask

FACTS = VisionTowerFacts("test", width=32, layers=2, heads=2, patch_size=8, image_size=16)
VOCAB = 60


class Tokenizer:
    def save(self, directory):
        (directory / "tokenizer.json").write_text("{}")


def make_task(idf="running"):
    with seeded(0):
        tower = VisionTower(config_from_facts(FACTS))
    return SuperClassTask(SuperClassModel(tower, VOCAB), Tokenizer(), idf)


def make_batch(rows, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(VOCAB, generator=g)[:6] for _ in range(rows)])
    ids[:, 4:] = ids[:, 4:].masked_fill(torch.rand(rows, 2, generator=g) < 0.5, -1)
    images = torch.randint(0, 256, (rows, 3, 16, 16), dtype=torch.uint8, generator=g)
    return {"pixel_values": images, "label_ids": ids, "num_bad": 0}


def test_loss_is_the_papers_formula_with_running_weights():
    task, batch = make_task(), make_batch(10)
    assert task.begin_step([make_batch(6, seed=1), batch]) == 16
    output = task(batch)

    both = [*make_batch(6, seed=1)["label_ids"].tolist(), *batch["label_ids"].tolist()]
    containing = torch.tensor([sum(c in caption for caption in both) for c in range(VOCAB)], dtype=torch.float64)
    idf = torch.log(17 / (containing + 1))
    present = torch.zeros(10, VOCAB, dtype=torch.float64)
    for row, caption in enumerate(batch["label_ids"].tolist()):
        present[row, [c for c in caption if c >= 0]] = 1
    targets = present * idf / (present * idf).sum(1, keepdim=True)
    expected = -(targets * task.model(batch["pixel_values"]).double().log_softmax(1)).sum()
    torch.testing.assert_close(output.loss_sum.double(), expected, rtol=1e-5, atol=0)
    assert output.num_targets == 10


def test_without_idf_labels_share_the_target_equally():
    task, batch = make_task(idf="none"), make_batch(8)
    assert task.begin_step([batch]) == 8
    log_probs = task.model(batch["pixel_values"]).log_softmax(1)
    rows = zip(log_probs, batch["label_ids"], strict=True)
    expected = -sum(row[ids[ids >= 0]].mean() for row, ids in rows)
    torch.testing.assert_close(task(batch).loss_sum, expected)


def test_micro_batches_add_up_to_the_whole_batch():
    batch = make_batch(12)
    parts = [{k: v[s] if torch.is_tensor(v) else v for k, v in batch.items()} for s in (slice(0, 5), slice(5, 12))]
    whole, split = make_task(), make_task()
    assert whole.begin_step([batch]) == split.begin_step(parts) == 12
    whole(batch).loss_sum.backward()
    for part in parts:
        split(part).loss_sum.backward()
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_validation_changes_no_state_and_recall_is_counted_by_hand():
    task, batch = make_task(), make_batch(9)
    batch["label_ids"][3] = -1
    batch["label_ids"][4] = task.model(batch["pixel_values"])[4].topk(6).indices  # six labels, all found: recall is 1
    task.begin_step([batch])
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    metrics = task.validation_metrics(batch)
    for name, tensor in task.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    order = task.model(batch["pixel_values"]).argsort(1, descending=True).tolist()
    for k in (5, 20):
        recalls = []
        for ranking, ids in zip(order, batch["label_ids"].tolist(), strict=True):
            labels = {c for c in ids if c >= 0}
            if labels:
                recalls.append(len(labels & set(ranking[:k])) / min(k, len(labels)))
        total, weight = metrics[f"val/recall@{k}"]
        assert total == pytest.approx(sum(recalls)) and weight == len(recalls) == 8
    assert metrics["val/loss"] == (pytest.approx(task(batch).loss_sum.item()), 9)


def test_counters_are_in_the_state_dict_and_survive_a_cast():
    task = make_task()
    task.begin_step([make_batch(20)])
    other = make_task().to(torch.bfloat16)
    other.load_state_dict(task.state_dict())
    assert torch.equal(other.frequency.document_frequency, task.frequency.document_frequency)
    assert other.frequency.num_documents.item() == 20


def test_parameter_groups_cover_all_and_decay_matrices_only():
    task = make_task()
    names = {id(p): n for n, p in task.named_parameters()}
    groups = task.parameter_groups(OptimConfig(lr=1e-3, weight_decay=0.2, lr_multipliers={"head": 0.5}))
    assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
    for group in groups:
        for param in group["params"]:
            name = names[id(param)]
            vector = "ln_" in name or "norm" in name or "bias" in name or "class_embedding" in name
            assert group["weight_decay"] == (0.0 if vector else 0.2), name
            assert group["lr"] == (1e-3 if "tower" in name else 5e-4), name
    with pytest.raises(UserError, match="projector"):
        task.parameter_groups(OptimConfig(lr_multipliers={"projector": 2.0}))


def test_training_on_fixed_captions_learns_them():
    task, batch = make_task(), make_batch(64)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        num_targets = task.begin_step([batch])
        loss = task(batch).loss_sum / num_targets
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 4 and losses[-1] < 0.75 * losses[0]
    total, weight = task.validation_metrics(batch)["val/recall@5"]
    assert total / weight > 0.3, "chance is 5 / 60"


@torch.no_grad()
def test_export_holds_tower_head_counts_and_tokenizer(tmp_path):
    task, batch = make_task(), make_batch(7)
    task.begin_step([batch])
    task.export(str(tmp_path))
    assert build_tower(tmp_path).fingerprint() == task.model.tower.fingerprint()
    head = load_file(tmp_path / "superclass_head.safetensors")
    pooled = build_tower(tmp_path).pooled(batch["pixel_values"])
    normed = torch.nn.functional.layer_norm(pooled, (32,), head["norm.weight"], head["norm.bias"])
    logits = normed @ head["head.weight"].T + head["head.bias"]
    torch.testing.assert_close(logits, task.model(batch["pixel_values"]))
    counts = load_file(tmp_path / "token_counts.safetensors")
    assert counts["num_documents"] == 7 and torch.equal(counts["document_frequency"], task.frequency.document_frequency)
    assert (tmp_path / "tokenizer.json").is_file()


RANK_PROGRAM = """
import importlib.util, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
spec = importlib.util.spec_from_file_location("tests_of_the_task", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
rank, store = int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
task = tests.make_task()
for unit in task.shard_units():
    fully_shard(unit)
fully_shard(task)
share = lambda batch: {key: value[rank::2] if torch.is_tensor(value) else value for key, value in batch.items()}
losses = tests.train(task, share, world=2)
total = torch.tensor(losses)
dist.all_reduce(total)
print(total.tolist())
dist.destroy_process_group()
"""


def train(task, share, world=1, steps=4):
    """Losses of a few optimizer steps at a batch of 1200, enough for the fused form on each of two ranks."""
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        batch = share(make_batch(1200, seed=step))
        num_targets = task.begin_step([batch])
        output = task(batch)
        (output.loss_sum * world / num_targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss_sum.item() / num_targets)
    return losses


@pytest.mark.dist
def test_two_sharded_ranks_train_like_one_process(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, __file__, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [json.loads(rank.communicate(timeout=240)[0].strip().splitlines()[-1]) for rank in ranks]
    expected = train(make_task(), lambda batch: batch)
    assert outputs[0] == outputs[1] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0]
