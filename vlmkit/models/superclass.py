"""The SuperClass model: a vision tower and a linear classifier over the whole caption vocabulary."""

from __future__ import annotations

import torch
from torch import nn

from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower


class SuperClassModel(nn.Module):
    """Mean of the final-norm patches, LayerNorm, linear head with bias: one logit per token (SuperClass, section 3).

    The head starts from N(0, 1 / width), drawn from ``seed`` alone, with bias 0.
    """

    def __init__(self, tower: VisionTower, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(tower.width)
        with seeded(seed):
            self.head = nn.Linear(tower.width, vocab_size)
            nn.init.normal_(self.head.weight, std=tower.width**-0.5)
        nn.init.zeros_(self.head.bias)

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the head reads: [B, width] for images [B, 3, S, S]."""
        return self.norm(self.tower.pooled(pixel_values))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits [B, vocab_size]."""
        return self.head(self.features(pixel_values))
