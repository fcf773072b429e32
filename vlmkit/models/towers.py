"""Any vision tower by name or configuration: vlmkit's own kinds, or one of transformers."""

from __future__ import annotations

import os
from pathlib import Path

from vlmkit import registry
from vlmkit.models.open_clip_layout import CONFIG_NAME, Config
from vlmkit.models.transformers_tower import (
    TransformersTower,
    is_hub_directory,
    load_transformers_tower,
    transformers_config,
)
from vlmkit.models.vision_tower import TIMM_PREFIX, VisionTower, build_tower, tower_config
from vlmkit.runs import is_run

PAPERS_GRID = 24
"""Patches a side in the published VLMs: 336 pixels at patch 14, 384 at patch 16."""


def find_tower(name: str, image_size: int | None = None, seed: int = 0) -> VisionTower:
    """The tower called ``name``, in float32 on the CPU: what ``build_tower`` knows, or one of transformers.

    The latter is a directory in hub layout or a hub id. Raises UserError as ``build_tower`` and
    ``load_transformers_tower`` do.
    """
    if _is_of_transformers(name):
        return load_transformers_tower(name, image_size)
    return build_tower(name, image_size, seed)


def find_tower_config(name: str, image_size: int | None = None) -> Config:
    """The configuration of the tower that :func:`find_tower` gives, without its weights."""
    return transformers_config(name, image_size) if _is_of_transformers(name) else tower_config(name, image_size)


def tower_from_config(config: Config) -> VisionTower:
    """The tower of a configuration, with fresh weights."""
    return TransformersTower(config) if "transformers" in config else VisionTower(config)


def default_image_size(name: str) -> int | None:
    """The image side that gives a published ViT the papers' 24 x 24 grid; None: the tower stays at its own.

    That is for towers of patch size 14 or 16 named as in the registry, in open_clip or on the hub; runs, open_clip
    directories, timm networks and towers of a finer grid keep their own size.
    """
    if _is_local(name) and not _is_of_transformers(name):
        return None
    config = find_tower_config(name)
    vision = config.get("transformers") or config["model_cfg"]["vision_cfg"]
    size = PAPERS_GRID * vision.get("patch_size", 0)
    return size if vision.get("patch_size") in (14, 16) and config["preprocess_cfg"]["size"] < size else None


def _is_local(name: str) -> bool:
    return name.lower() not in registry.VISION_TOWERS and (Path(name).exists() or is_run(name))


def _is_of_transformers(name: str) -> bool:
    if name.lower() in registry.VISION_TOWERS or name.startswith((TIMM_PREFIX, "hf-hub:")):
        return False
    if _is_local(name):
        return is_hub_directory(name) and not (Path(name) / CONFIG_NAME).is_file()
    return name.count("/") == 1 and not name.startswith((".", os.sep))
