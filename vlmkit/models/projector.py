"""The projector: from the tower's width to the language model's (LLaVA 1.5's two-layer MLP)."""

from __future__ import annotations

from torch import nn


def build_projector(vision_width: int, text_width: int) -> nn.Sequential:
    """Linear, GELU, Linear: [..., vision_width] -> [..., text_width]."""
    return nn.Sequential(nn.Linear(vision_width, text_width), nn.GELU(), nn.Linear(text_width, text_width))
