import math
import subprocess
import sys

import pytest
import torch

from vlmkit.losses.token_frequency import TokenFrequency

VOCAB = 11


def captions(rows, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(VOCAB, generator=g)[:5] for _ in range(rows)])
    return ids.masked_fill(torch.arange(5) >= torch.randint(0, 6, (rows, 1), generator=g), -1)


def test_weights_equal_the_papers_running_means():
    # The published code keeps the mean document frequency per call and the number of calls, in float64.
    frequency, mean, batch = TokenFrequency(VOCAB), torch.zeros(VOCAB, dtype=torch.float64), 8
    for call in range(1, 7):
        ids = captions(batch, seed=call)
        frequency.update([ids[:3], ids[3:]])
        present = torch.zeros(batch, VOCAB + 1).scatter_(1, ids.where(ids >= 0, VOCAB), 1.0)[:, :VOCAB]
        mean += (present.sum(0) - mean) / call
        expected = torch.log((call * batch + 1) / (mean * call + 1))
        torch.testing.assert_close(frequency.weights(torch.arange(VOCAB)), expected.float(), rtol=1e-6, atol=1e-7)


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


RANK_PROGRAM = """
import sys, torch, torch.distributed as dist
from vlmkit.losses.token_frequency import TokenFrequency
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
frequency = TokenFrequency(5)
ids = [torch.tensor([[0, 1], [1, 2]]), torch.tensor([[1, 3], [-1, -1], [4, -1]])]
print(frequency.update([ids[rank]]), frequency.document_frequency.tolist(), frequency.num_documents.item())
dist.destroy_process_group()
"""


@pytest.mark.dist
def test_every_rank_counts_the_captions_of_all_ranks(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    assert outputs == ["5 [1, 3, 1, 1, 1] 5"] * 2
