"""What SuperClass reads of a tower, and its head: a linear classifier over the whole caption vocabulary."""

from __future__ import annotations

import torch
from torch import nn

from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower


class SuperClassHead(nn.Module):
    """LayerNorm and a linear layer with bias over pooled features: one logit per token (SuperClass, section 3).

    The linear layer starts from N(0, 1 / width), drawn from ``seed`` alone, with bias 0.
    """

    def __init__(self, width: int, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        with seeded(seed):
            self.head = nn.Linear(width, vocab_size)
            nn.init.normal_(self.head.weight, std=width**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits [B, vocab_size] of pooled tower features [B, width]."""
        return self.head(self.norm(features))


def pooled_and_patch_mean(tower: VisionTower, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``tower.pooled``, and the mean over the patches after the final norm, from one pass: [B, width] each.

    A tower that does not pool the class token has the one feature for both.
    """
    if tower.pooling != "tok":
        pooled = tower.pooled(pixel_values)
        return pooled, pooled
    output = tower.visual.forward_intermediates(  # type: ignore[operator]
        tower._normalised(pixel_values), indices=1, normalize_intermediates=True, output_fmt="NLC"
    )
    return output["image_features"], output["image_intermediates"][0].mean(1)
