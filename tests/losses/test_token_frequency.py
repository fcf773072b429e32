import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from vlmkit.losses.token_frequency import TokenFrequency

VOCAB = 11
EVERY_TOKEN = torch.arange(VOCAB)


def captions(rows, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(VOCAB, generator=g)[:5] for _ in range(rows)])
    return ids.masked_fill(torch.arange(5) >= torch.randint(0, 6, (rows, 1), generator=g), -1)


class RunningEstimate:
    """SuperClass's running estimate: float64 means over calls and ranks of the number of captions with a token."""

    def __init__(self):
        self.calls, self.mean = 0, np.zeros(VOCAB)

    def weights(self, batches):
        """Weights after one more call, whose batches, one a rank, have equally many captions."""
        per_rank = [[sum(token in row for row in batch.tolist()) for token in range(VOCAB)] for batch in batches]
        self.calls += 1
        self.mean += (np.mean(per_rank, axis=0) - self.mean) / self.calls
        seen = self.calls * sum(map(len, batches))
        return np.log((seen + 1) / (self.mean * self.calls * len(batches) + 1))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_weights_equal_the_running_estimate_across_a_resume(micro_batches):
    frequency, reference = TokenFrequency(VOCAB), RunningEstimate()
    for call in range(8):
        if call == 4:
            saved, frequency = frequency.state_dict(), TokenFrequency(VOCAB)
            frequency.load_state_dict(saved)
        ids = captions(8, seed=call)
        assert frequency.update(ids.split(8 // micro_batches)) == 8
        weights = frequency.weights(EVERY_TOKEN, torch.float64).numpy()
        np.testing.assert_allclose(weights, reference.weights([ids]), rtol=0, atol=1e-12)
        assert torch.equal(frequency.weights(EVERY_TOKEN), torch.from_numpy(weights).float())


def test_update_counts_captions_and_returns_how_many():
    frequency = TokenFrequency(5)
    assert frequency.update([torch.tensor([[0, 4], [4, -1]]), torch.tensor([[-1, -1]])]) == 3
    assert frequency.document_frequency.tolist() == [1, 0, 0, 0, 2]
    assert frequency.num_documents.item() == 3


def test_a_token_of_every_caption_weighs_exactly_nothing():
    frequency = TokenFrequency(3)
    for _ in range(7):
        frequency.update([torch.tensor([[0, 1], [0, -1], [0, 2]])])
        assert frequency.weights(torch.tensor([0])).item() == 0
    rows = frequency.normalised(torch.tensor([[0, -1, -1], [0, 1, 2], [-1, -1, -1], [2, -1, -1]]))
    assert rows[0].tolist() == [0, 0, 0] and rows[2].tolist() == [0, 0, 0]
    assert rows[1].sum().item() == pytest.approx(1) and rows[1, 0] == 0
    assert rows[3].tolist() == [1, 0, 0]
    assert frequency.weights(torch.tensor([1])).item() == pytest.approx(math.log(22 / 8))


def test_the_printed_formula_is_kept_from_falling_below_nothing():
    frequency = TokenFrequency(4, formula="paper")
    assert frequency.weights(torch.arange(4)).tolist() == [0, 0, 0, 0], "before any caption"
    frequency.update([torch.tensor([[0, 1, -1], [0, 1, 2], [0, -1, -1]])])
    weights = frequency.weights(torch.tensor([[0, 1, 2, 3, -1]]), torch.float64)
    # As printed the first two would be log(3/4) and log(3/3).
    expected = [[0, 0, math.log(3 / 2), math.log(3), 0]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert frequency.normalised(torch.tensor([[0, 1, 2], [0, 1, -1]])).tolist() == [[0, 0, 1], [0, 0, 0]]


def test_counts_survive_a_cast_and_reading_does_not_count():
    frequency = TokenFrequency(VOCAB)
    for seed in range(160):
        frequency.update([captions(8, seed)])
    before = frequency.document_frequency.clone()
    assert before.max() > 256, "bf16 could hold these counts"
    frequency.to(torch.bfloat16)
    frequency.normalised(captions(8, 0))
    assert frequency.document_frequency.dtype == torch.int64
    assert torch.equal(frequency.document_frequency, before) and frequency.num_documents == 1280


def test_a_step_that_begins_at_the_limit_changes_nothing():
    frequency, free = TokenFrequency(VOCAB, frozen_after=20), TokenFrequency(VOCAB)
    for step in range(6):
        if step == 4:  # frozen or not follows from the counts alone, so a resumed run agrees
            saved, frequency = frequency.state_dict(), TokenFrequency(VOCAB, frozen_after=20)
            frequency.load_state_dict(saved)
        ids = captions(8, step)
        assert frequency.update([ids[:2], ids[2:]]) == 8
        if step < 3:  # steps begin at 0, 8 and 16 captions; the one at 24 is too late
            free.update([ids])
        assert torch.equal(frequency.document_frequency, free.document_frequency)
        assert frequency.num_documents == free.num_documents == min(24, 8 * (step + 1))


def test_corpus_counts_never_change():
    counts = np.arange(VOCAB)
    frequency = TokenFrequency(VOCAB, corpus=(counts, 10))
    assert frequency.update([captions(3, 0), captions(4, 1)]) == 7
    assert frequency.document_frequency.tolist() == counts.tolist() and frequency.num_documents == 10
    expected = [math.log(11 / (count + 1)) for count in counts]
    np.testing.assert_allclose(frequency.weights(EVERY_TOKEN, torch.float64), expected, rtol=0, atol=1e-12)
    assert frequency.weights(torch.tensor([10])).item() == 0
    restored = TokenFrequency(VOCAB, corpus=(np.zeros(VOCAB, dtype=np.int64), 0))
    restored.load_state_dict(frequency.state_dict())
    restored.update([captions(3, 0)])
    assert restored.num_documents == 10 and restored.document_frequency.tolist() == counts.tolist()


RANK_PROGRAM = """
import importlib.util, json, sys, torch, torch.distributed as dist
spec = importlib.util.spec_from_file_location("tests_of_frequency", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
rank, store = int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(json.dumps(tests.two_rank_run(rank)))
dist.destroy_process_group()
"""
STEPS, SHARE = 6, 4


def two_rank_run(rank):
    """What one of two ranks sees: captions of each step, its weights, and the counts of a frequency that freezes."""
    running, freezing = TokenFrequency(VOCAB), TokenFrequency(VOCAB, frozen_after=30)
    seen, weights = [], []
    for step in range(STEPS):
        micro_batches = captions(SHARE, seed=2 * step + rank).split(2 if step % 2 else SHARE)
        seen.append((running.update(micro_batches), freezing.update(micro_batches)))
        weights.append(running.weights(EVERY_TOKEN, torch.float64).tolist())
        if step == 2:
            saved, running = running.state_dict(), TokenFrequency(VOCAB)
            running.load_state_dict(saved)
    return {
        "seen": seen,
        "weights": weights,
        "frozen": freezing.document_frequency.tolist(),
        "uneven": running.update([captions(1 + rank, seed=0)]),
    }


@pytest.mark.dist
def test_two_ranks_equal_the_running_estimate_and_one_process(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, __file__, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (json.loads(rank.communicate(timeout=120)[0]) for rank in ranks)
    assert first == second
    assert first["seen"] == [[2 * SHARE, 2 * SHARE]] * STEPS and first["uneven"] == 3

    reference, alone = RunningEstimate(), TokenFrequency(VOCAB, frozen_after=30)
    for step, weights in enumerate(first["weights"]):
        batches = [captions(SHARE, seed=2 * step + rank) for rank in range(2)]
        np.testing.assert_allclose(weights, reference.weights(batches), rtol=0, atol=1e-12)
        alone.update(batches)
    assert first["frozen"] == alone.document_frequency.tolist()
    assert alone.num_documents == 32
