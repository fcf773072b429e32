from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest
import torch
from toy_task import ToyTask, losses_of, run_job

from vlmkit.config import CheckpointConfig, OptimConfig
from vlmkit.errors import UserError
from vlmkit.training import checkpoint, distributed
from vlmkit.training.checkpoint import Checkpointer, tensors_of, whole_checkpoints
from vlmkit.training.optim import Optimizer


class FourBit(torch.nn.Linear):
    """A frozen layer that says in its state how its weight is held, as bitsandbytes' do."""

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[arg-type]
        destination[f"{prefix}weight.absmax"] = torch.ones(3)


def new(directory: Path, keep: int = 2, asynchronous: bool = False) -> Checkpointer:
    task = ToyTask(0.0)
    task.unused = torch.nn.Linear(3, 3)  # trainable, never given a gradient
    task.frozen_too = FourBit(3, 3).requires_grad_(False)
    optimizer = Optimizer(task, OptimConfig(), total_steps=10)
    context = distributed.setup("cpu")
    return Checkpointer(directory, context, task, optimizer.adamw, keep, asynchronous)


def disturb(checkpointer: Checkpointer) -> dict[str, torch.Tensor]:
    """Give every saved tensor another value; returns copies."""
    tensors = tensors_of(checkpointer.module, checkpointer.optimizer)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(torch.rand(tensor.shape) * 100)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_holds_all_that_training_changes_and_nothing_frozen(tmp_path: Path) -> None:
    saver = new(tmp_path)
    saved = disturb(saver)
    assert saved["model.targets_seen"].dtype == torch.int64
    assert "optim.unused.weight.exp_avg" in saved and not any("frozen" in name for name in saved)
    saver.save({"step": 3, "note": [1.5, "x"]})
    loader = new(tmp_path)
    state, rng_state = loader.restore(seed=0)
    assert state == {"step": 3, "note": [1.5, "x"]} and rng_state
    loaded = tensors_of(loader.module, loader.optimizer)
    assert loaded.keys() == saved.keys()
    assert [name for name in saved if not loaded[name].equal(saved[name])] == []
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}  # no pickle


def test_an_asynchronous_save_is_of_the_moment_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    write = Checkpointer._write
    monkeypatch.setattr(Checkpointer, "_write", lambda self, *args: gate.wait(10) and write(self, *args))
    saver = new(tmp_path, asynchronous=True)
    saved = disturb(saver)
    saver.save({"step": 1})
    disturb(saver)
    assert whole_checkpoints(tmp_path) == []
    gate.set()
    saver.wait()
    loader = new(tmp_path)
    loader.restore(seed=0)
    loaded = tensors_of(loader.module, loader.optimizer)
    assert [name for name in saved if not loaded[name].equal(saved[name])] == []


def test_keeps_the_newest(tmp_path: Path) -> None:
    saver = new(tmp_path, keep=2)
    for step in (5, 90, 100_000_000):
        saver.save({"step": step})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000090", "step-100000000"]
    assert new(tmp_path).restore(seed=0)[0]["step"] == 100_000_000


@pytest.mark.parametrize("damage", ["no marker", "torn marker", "torn tensors", "missing rng"])
def test_a_checkpoint_that_is_not_whole_is_never_loaded(tmp_path: Path, damage: str) -> None:
    saver = new(tmp_path)
    saver.save({"step": 1})
    saver.save({"step": 2})
    newest = tmp_path / "step-00000002"
    marker = newest / "trainer.json"
    if damage == "no marker":
        marker.unlink()
    elif damage == "torn marker":
        marker.write_text(marker.read_text()[:-9])
    elif damage == "torn tensors":
        file = next((newest / "state").iterdir())
        file.write_bytes(file.read_bytes()[:-1])
    else:
        (newest / "rng-00000.safetensors").unlink()
    (tmp_path / "step-00000003.partial").mkdir()  # what a killed process leaves behind
    loader = new(tmp_path)
    assert loader.restore(seed=0)[0]["step"] == 1
    assert not (tmp_path / "step-00000003.partial").exists()
    loader.save({"step": 2})
    assert new(tmp_path).restore(seed=0)[0]["step"] == 2


@pytest.mark.parametrize("where", ["tensors", "marker"])
def test_a_full_disk_is_a_sentence_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    saver = new(tmp_path, asynchronous=True)
    saver.save({"step": 1})
    saver.wait()
    if where == "tensors":
        monkeypatch.setattr(checkpoint.HuggingFaceStorageWriter, "write_data", full)
    else:
        monkeypatch.setattr(checkpoint, "_sync_directory", full)  # after the marker, before the rename
    saver.save({"step": 2})
    with pytest.raises(UserError, match=r"step-00000002.*No space left on device.*step-00000001 is whole"):
        saver.wait()
    assert not saver.failed  # told once
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert new(tmp_path).restore(seed=0)[0]["step"] == 1


def test_a_failed_write_in_the_background_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cadence = CheckpointConfig(every_steps=100, asynchronous=True)
    run_job(tmp_path, steps=4)
    monkeypatch.setattr(checkpoint.HuggingFaceStorageWriter, "write_data", full)
    with pytest.raises(UserError, match="No space left"):
        run_job(tmp_path, steps=200, checkpoint=cadence, validate=False)
    assert 100 <= len(losses_of(tmp_path)) < 200  # not only when the next one is due
    monkeypatch.undo()
    assert [path.name for path in whole_checkpoints(tmp_path / "checkpoints")] == ["step-00000004"]
    assert run_job(tmp_path, steps=16)[0].step == 16


def test_another_model_is_refused_with_the_checkpoint_named(tmp_path: Path) -> None:
    new(tmp_path).save({"step": 1})
    loader = new(tmp_path)
    loader.module.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(UserError, match=r"step-00000001 does not fit"):
        loader.restore(seed=0)


def test_at_another_world_size_dropout_is_seeded_anew_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = new(tmp_path)
    saver.save({"step": 1})
    marker = tmp_path / "step-00000001" / "trainer.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"world_size": 4}))
    state, rng_state = new(tmp_path).restore(seed=5)
    assert state["step"] == 1 and rng_state is None
    assert "4 process" in caplog.text and "seed 5" in caplog.text
