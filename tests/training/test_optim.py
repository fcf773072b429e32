from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from toy_task import ToyTask

from vlmkit.config import OptimConfig
from vlmkit.errors import UserError
from vlmkit.training.optim import Optimizer, clip_gradients, lr_factor


def factors(total: int, **options: object) -> list[float]:
    optim = OptimConfig(**options)
    return [lr_factor(step, total, optim) for step in range(total)]


def test_warmup_counts_steps_or_a_fraction_of_them() -> None:
    steps = factors(100, schedule="constant", warmup=4)
    assert steps[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0] and set(steps[4:]) == {1.0}
    assert factors(100, schedule="constant", warmup=0.04) == steps
    assert factors(10, schedule="constant", warmup=0) == [1.0] * 10


def test_cosine_falls_from_peak_to_floor() -> None:
    values = factors(110, schedule="cosine", warmup=10, min_lr_ratio=0.1)
    assert values[10] == 1.0
    assert values[60] == pytest.approx(0.55)  # half way down
    assert values[35] == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)  # a quarter: cos(pi / 4)
    assert 0.1 < values[-1] < 0.101
    assert all(before > after for before, after in pairwise(values[10:]))


def test_wsd_is_flat_then_linear() -> None:
    values = factors(100, schedule="wsd", warmup=5, decay_fraction=0.2, min_lr_ratio=0.0)
    assert set(values[5:81]) == {1.0}
    assert values[80:] == pytest.approx([1 - k / 20 for k in range(20)])


def test_adamw_from_the_first_step_equals_torch_and_groups_keep_their_rates() -> None:
    """State made in advance must not shift Adam's bias correction."""
    optim = OptimConfig(lr=1e-2, warmup=2, schedule="constant", weight_decay=0.1, clip_norm=None)
    task, reference = ToyTask(0.0), ToyTask(0.0)
    optimizer = Optimizer(task, optim, total_steps=5)
    groups = reference.parameter_groups(optim)
    plain = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps)
    for step in range(5):
        for mine, other in zip(task.parameters(), reference.parameters(), strict=True):
            if mine.requires_grad:
                mine.grad = torch.sin(mine.detach() * 3 + step)
                other.grad = mine.grad.clone()
        for group, peak in zip(plain.param_groups, (1e-2, 5e-3), strict=True):
            group["lr"] = peak * min(1.0, (step + 1) / 2)
        optimizer.step(step)
        plain.step()
    for mine, other in zip(task.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_clipping_scales_to_the_limit_and_returns_the_norm_before() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    assert clip_gradients(parameters, None) == 7.0
    assert parameters[0].grad.tolist() == [2.0, 3.0]
    assert clip_gradients(parameters, 3.5) == 7.0
    assert torch.cat([p.grad for p in parameters]).norm() == pytest.approx(3.5)


def test_a_wholly_frozen_model_is_refused() -> None:
    with pytest.raises(UserError, match="frozen"):
        Optimizer(ToyTask(0.0).requires_grad_(False), OptimConfig(), total_steps=5)
