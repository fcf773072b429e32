"""The embedded world: drawn scenes with captions, questions and labels; ships as code, needs no download."""

from vlmkit.data.miniworld.facts import VERSION
from vlmkit.data.miniworld.questions import FAMILIES, Question
from vlmkit.data.miniworld.world import MiniWorld

__all__ = ["FAMILIES", "VERSION", "MiniWorld", "Question"]
