"""open_clip's directory layout: ``open_clip_config.json`` and ``open_clip_model.safetensors``.

The configuration of a :class:`~vlmkit.models.vision_tower.VisionTower` is the content of that JSON file, so what is
built, fingerprinted, exported and read back is one description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlmkit.errors import UserError
from vlmkit.models.seeding import seeded
from vlmkit.registry import CLIP_MEAN, CLIP_STD, VisionTowerFacts

if TYPE_CHECKING:
    from open_clip.transformer import VisionTransformer

    from vlmkit.models.vision_tower import VisionTower

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"

Config = dict[str, Any]

# open_clip has no image-only model; the smallest text tower keeps its loader and its tokenizer working.
_DUMMY_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
_INTEGERS = ("width", "layers", "patch_size", "image_size")
_NOT_PLAIN = ("timm_model_name", "attentional_pool", "final_ln_after_pool", "patch_dropout")


def config_from_facts(facts: VisionTowerFacts, image_size: int | None = None) -> Config:
    """The configuration of a tower with the shape of ``facts``, at its own or another image size in pixels."""
    vision = {
        "width": facts.width,
        "layers": facts.layers,
        "head_width": facts.width // facts.heads,
        "mlp_ratio": facts.mlp_ratio,
        "patch_size": facts.patch_size,
        "image_size": facts.image_size,
    }
    return _config({"vision_cfg": vision}, {"mean": facts.mean, "std": facts.std}, image_size)


def read_config(directory: Path, image_size: int | None = None) -> Config:
    """The configuration of the plain ViT in an open_clip directory; its text tower and projection are left behind.

    Raises UserError when the file is missing, unreadable or describes a tower that is not a plain square ViT.
    """
    path = directory / CONFIG_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model, preprocess = raw["model_cfg"], raw.get("preprocess_cfg", {})
        vision = model["vision_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a readable open_clip configuration ({error}); "
            "give a directory written by open_clip or vlmkit."
        ) from error
    unsupported = [key for key in _NOT_PLAIN if vision.get(key)]
    unsupported += [key for key in _INTEGERS if not isinstance(vision.get(key), int)]
    if unsupported:
        raise UserError(
            f"The vision tower of {directory} is not a plain square ViT ({', '.join(unsupported)} in vision_cfg); "
            "choose another tower."
        )
    return _config(model, preprocess, image_size)


def _config(model: Mapping[str, Any], preprocess: Mapping[str, Any], image_size: int | None) -> Config:
    vision = {**model["vision_cfg"], "pool_type": "avg", "output_tokens": False}
    vision["image_size"] = size = image_size or vision["image_size"]
    patch = vision["patch_size"]
    if size % patch:
        near = " or ".join(str(side) for side in (size // patch * patch, (size // patch + 1) * patch) if side)
        raise UserError(f"Images of {size} pixels do not divide into patches of {patch}; ask for {near}.")
    return {
        "model_cfg": {
            "embed_dim": vision["width"],
            "quick_gelu": model.get("quick_gelu", False),
            "vision_cfg": vision,
            "text_cfg": dict(_DUMMY_TEXT),
        },
        "preprocess_cfg": {
            "size": size,
            "mode": "RGB",
            "mean": list(preprocess.get("mean", CLIP_MEAN)),
            "std": list(preprocess.get("std", CLIP_STD)),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def build_visual(config: Config) -> VisionTransformer:
    """open_clip's ViT for ``config`` with fresh weights; it returns the mean of the final-norm patches, unprojected."""
    import open_clip

    visual = open_clip.CLIP(**config["model_cfg"]).visual
    visual.proj = None
    return visual


def load_weights(tower: VisionTower, directory: Path) -> None:
    """Load the ViT in an open_clip directory into ``tower``; positions are interpolated to the tower's patch grid.

    Raises UserError when the safetensors file is missing, damaged, or does not fit its configuration.
    """
    from open_clip.model import resize_pos_embed

    path = directory / WEIGHTS_NAME
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The weights {path} cannot be read ({error}); export the tower again.") from error
    state = {
        name: tensor.float() for name, tensor in weights.items() if name.startswith("visual.") and name != "visual.proj"
    }
    try:
        resize_pos_embed(state, tower)
        tower.load_state_dict(state)
    except RuntimeError as error:
        reason = shorten(str(error), 300)
        raise UserError(
            f"The weights {path} do not fit the configuration beside them ({reason}); export the tower again."
        ) from error


def export_open_clip(tower: VisionTower, directory: str | Path) -> None:
    """Write ``tower`` so that ``open_clip.create_model("local-dir:DIRECTORY")`` loads it.

    Its ``encode_image`` equals ``tower.pooled``: the output projection, which open_clip requires, is the identity.
    """
    import open_clip

    with seeded(0):
        clip = open_clip.CLIP(**tower.config["model_cfg"])
    state = {**clip.state_dict(), **tower.state_dict(), "visual.proj": torch.eye(tower.width)}
    directory = Path(directory)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, directory / WEIGHTS_NAME)
    (directory / CONFIG_NAME).write_text(json.dumps(tower.config, indent=2) + "\n", encoding="utf-8")
