"""The linear probe of the published tables: non-affine BatchNorm and a linear layer, trained by LARS (MAE's protocol).

What is published (SuperClass, section 4.2, and the authors' note on it): the tower's final norm is kept, LARS with
momentum 0.9, base rate 0.1 per 256 samples, no weight decay, 90 epochs of which 10 warm up, a cosine to zero, batches
of 16384 ImageNet images, random resized crops and flips. Done differently here: features are computed once, of the
centre view of each image, so there is no augmentation; and many base rates are trained in one pass over them, the best
on held-out training images being trained again on all. That choice is needed: one LARS step changes the weights by a
fraction of their norm, so the rate that suits 7000 steps on ImageNet does next to nothing in 1000 on a small set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from timm.optim import Lars
from torch import nn
from torch.nn import functional as F

from vlmkit.config import OptimConfig
from vlmkit.evals.probes.features import AttributeSplit
from vlmkit.evals.probes.linear import hold_out
from vlmkit.evals.probes.result import ProbeResult
from vlmkit.models.seeding import seeded
from vlmkit.training.optim import lr_factor

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Base learning rates tried, per 256 samples of a batch; 0.1 is the published one."""
EPOCHS, WARMUP_EPOCHS = 90, 10
MAX_BATCH_SIZE, MIN_BATCH_SIZE = 16384, 256
NORM_EPS = 1e-6
"""Of the BatchNorm, as in MAE's ``main_linprobe.py``; torch's default would add ten times as much to the variance."""
STEPS_PER_EPOCH = 78
"""Of the published protocol on ImageNet; smaller sets get smaller batches, so that there are steps enough."""

_CHUNK = 4096


def mae_linear_probe(split: AttributeSplit, *, device: torch.device | str = "cpu") -> ProbeResult:
    """A linear classifier trained by LARS, at the base rate that does best on held-out training images.

    The result's ``detail`` names the rate, and says where it is the lowest or highest of those tried.
    """
    kept, held_out = hold_out(split)
    x, y = torch.from_numpy(split.train_x).to(device), torch.from_numpy(split.train_y).to(device)
    heads = train_heads(x[kept], y[kept], len(split.classes), RATES)
    accuracies = (heads.predict(x[held_out]) == y[held_out]).float().mean(dim=1)
    rate = RATES[int(accuracies.argmax())]  # the lower rate on a tie
    head = train_heads(x, y, len(split.classes), [rate])
    predicted = head.predict(torch.from_numpy(split.test_x).to(device))
    edge = ", edge" if rate in (RATES[0], RATES[-1]) else ""
    return ProbeResult.of(split, predicted.cpu().numpy(), f"rate {rate:g}{edge}")


class LinearHeads(nn.Module):
    """R linear classifiers on one non-affine BatchNorm, started alike: features [B, D] to logits [R, B, C]."""

    def __init__(self, num_heads: int, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(num_features, affine=False, eps=NORM_EPS)
        with seeded(0):
            start = nn.init.trunc_normal_(torch.empty(num_classes, num_features), std=0.01)
        # Parameters of their own, not slices of one: LARS adapts its rate to the norm of each tensor.
        self.weights = nn.ParameterList(start.clone() for _ in range(num_heads))
        self.biases = nn.ParameterList(torch.zeros(num_classes) for _ in range(num_heads))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = self.norm(features)
        weights, biases = torch.stack([*self.weights]), torch.stack([*self.biases])
        flat = F.linear(x, weights.flatten(0, 1), biases.flatten())
        return flat.view(len(x), *biases.shape).transpose(0, 1)

    @torch.inference_mode()
    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Class indices [R, n], with the running statistics of the norm."""
        self.eval()
        return torch.cat([self(chunk).argmax(dim=2) for chunk in features.split(_CHUNK)], dim=1)


def train_heads(x: torch.Tensor, y: torch.Tensor, num_classes: int, rates: Sequence[float]) -> LinearHeads:
    """Train one head for each base rate on features [n, D] and labels [n], all in the same passes over them.

    Start, order of the samples and batches are the same for any ``rates``, so a head does not depend on its neighbours.
    """
    heads = LinearHeads(len(rates), x.shape[1], num_classes).to(x.device).train()
    batch_size = min(len(x), max(MIN_BATCH_SIZE, min(MAX_BATCH_SIZE, len(x) // STEPS_PER_EPOCH)))
    steps_per_epoch = len(x) // batch_size
    total_steps = EPOCHS * steps_per_epoch
    peaks = [rate * batch_size / 256 for rate in rates]
    # Without weight decay timm's LARS adapts only where told to; biases follow the plain rate, as in MAE.
    groups = [{"params": [weight], "always_adapt": True} for weight in heads.weights]
    groups += [{"params": [bias]} for bias in heads.biases]
    optimizer = Lars(groups, momentum=0.9, weight_decay=0.0)
    schedule = OptimConfig(schedule="cosine", warmup=WARMUP_EPOCHS / EPOCHS)
    order = np.random.default_rng(0)
    for step in range(total_steps):
        if step % steps_per_epoch == 0:
            shuffled = torch.from_numpy(order.permutation(len(x))).to(x.device)
        start = step % steps_per_epoch * batch_size
        batch = shuffled[start : start + batch_size]
        factor = lr_factor(step, total_steps, schedule)
        for group, peak in zip(optimizer.param_groups, peaks * 2, strict=True):
            group["lr"] = peak * factor
        logits = heads(x[batch])
        loss = F.cross_entropy(logits.flatten(0, 1), y[batch].repeat(len(rates)), reduction="sum") / len(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return heads
