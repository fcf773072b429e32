"""k nearest neighbours of frozen features: what lies where, with nothing trained."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import normalize

from vlmkit.evals.probes.features import AttributeSplit
from vlmkit.evals.probes.result import ProbeResult

NUM_NEIGHBOURS, TEMPERATURE = 20, 0.07
"""DINO's k-NN protocol: the neighbours that vote, and the temperature of their weights exp(cosine / temperature)."""

_MAX_SIMILARITIES = 2**26
"""Similarities held at a time (256 MB)."""


@torch.inference_mode()
def nearest_neighbours(split: AttributeSplit, *, device: torch.device | str = "cpu") -> ProbeResult:
    """The class with the largest sum of weights among the nearest training images by cosine similarity."""
    train, test = (normalize(torch.from_numpy(x).to(device), dim=1) for x in (split.train_x, split.test_x))
    labels = torch.from_numpy(split.train_y).to(device)
    predicted = []
    for chunk in test.split(max(1, _MAX_SIMILARITIES // len(train))):
        similarity, neighbour = (chunk @ train.T).topk(min(NUM_NEIGHBOURS, len(train)))
        votes = torch.zeros(len(chunk), len(split.classes), device=device)
        votes.scatter_add_(1, labels[neighbour], (similarity / TEMPERATURE).exp())
        predicted.append(votes.argmax(1).cpu().numpy())
    return ProbeResult.of(split, np.concatenate(predicted))
