"""The typed recipe tree: every setting of every command, with its default, unit and meaning. No torch.

Reading, overriding and comparing recipes is in :mod:`vlmkit.recipe`.
"""

from __future__ import annotations

from vlmkit.config.grids import StudyRecipe, SweepRecipe, arm_folder, at_equal_seconds, lit_on
from vlmkit.config.pretrain import AugmentConfig, LabelConfig, ObjectiveConfig, PretrainRecipe, TextTowerConfig
from vlmkit.config.sections import (
    DEFAULT_TOWER_RUN,
    CheckpointConfig,
    DataConfig,
    LogConfig,
    OptimConfig,
    Section,
    TowerConfig,
    TrainConfig,
)
from vlmkit.config.vlm import EMBEDDED_VLM, CompressorConfig, LLMConfig, LoRAConfig, Query, VLMRecipe

RECIPES: dict[str, type[Section]] = {
    "pretrain-superclass": PretrainRecipe,
    "train-vlm": VLMRecipe,
    "sweep": SweepRecipe,
    "study": StudyRecipe,
}
"""The recipe of each command that takes one."""

__all__ = [
    "DEFAULT_TOWER_RUN",
    "EMBEDDED_VLM",
    "RECIPES",
    "AugmentConfig",
    "CheckpointConfig",
    "CompressorConfig",
    "DataConfig",
    "LLMConfig",
    "LabelConfig",
    "LoRAConfig",
    "LogConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PretrainRecipe",
    "Query",
    "Section",
    "StudyRecipe",
    "SweepRecipe",
    "TextTowerConfig",
    "TowerConfig",
    "TrainConfig",
    "VLMRecipe",
    "arm_folder",
    "at_equal_seconds",
    "lit_on",
]
