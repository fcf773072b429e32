"""open_clip's directory layout: ``open_clip_config.json`` and ``open_clip_model.safetensors``.

The configuration of a :class:`~vlmkit.models.vision_tower.VisionTower` is the content of that JSON file, so what is
built, fingerprinted, exported and read back is one description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vlmkit.errors import UserError
from vlmkit.models import timm_network
from vlmkit.models.seeding import seeded
from vlmkit.registry import CLIP_MEAN, CLIP_STD, VisionTowerFacts

if TYPE_CHECKING:
    from vlmkit.models.vision_tower import VisionTower

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"

Config = dict[str, Any]

# open_clip has no image-only model; the smallest text tower keeps its loader and its tokenizer working.
_DUMMY_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
_DUMMY_VISION = {"width": 8, "layers": 1, "head_width": 8, "patch_size": 8, "image_size": 8}
_INTEGERS = ("width", "layers", "patch_size", "image_size")
_ATTENTIONAL = ("attentional_pool", "attn_pooler_queries", "attn_pooler_heads")


class TextPart(NamedTuple):
    """What a trained text tower adds to an exported vision tower.

    ``text_cfg`` is open_clip's description of the text tower; ``weights`` are its tensors under the names of
    open_clip's ``CLIP`` (``transformer.*``, ``token_embedding.*``, ``positional_embedding``, ``ln_final.*``,
    ``text_projection``). ``projection`` [width, embed_dim] maps pooled image features (row vectors) into the space that
    images and texts share; ``logit_scale`` is open_clip's logarithm of the scale, ``logit_bias`` SigLIP's bias.
    """

    text_cfg: dict[str, Any]
    weights: dict[str, torch.Tensor]
    projection: torch.Tensor
    logit_scale: torch.Tensor
    logit_bias: torch.Tensor | None = None


def config_from_facts(facts: VisionTowerFacts, image_size: int | None = None, pooling: str | None = None) -> Config:
    """The configuration of a tower with the shape of ``facts``; its own image size and the mean unless told otherwise.

    Raises UserError for image sizes and poolings that the tower does not have.
    """
    if facts.timm_network is not None:
        vision: Config = {"timm_model_name": facts.timm_network, "image_size": facts.image_size}
    else:
        vision = {
            "width": facts.width,
            "layers": facts.layers,
            "head_width": facts.width // facts.heads,
            "mlp_ratio": facts.mlp_ratio,
            "patch_size": facts.patch_size,
            "image_size": facts.image_size,
        }
    return _config({"vision_cfg": vision}, {"mean": facts.mean, "std": facts.std}, image_size, pooling or "avg")


def config_from_open_clip(name: str, image_size: int | None = None, pooling: str | None = None) -> Config:
    """The configuration of the vision tower of open_clip's model ``name``; pooling as stated there, or the mean.

    CLIP's ResNets (RN101, RN50x4, ...) are timm's build of them: open_clip's own has no pooled features, its attention
    pooling being its projection.
    """
    import open_clip

    model = open_clip.get_model_config(name)
    vision = model["vision_cfg"]
    if isinstance(vision.get("layers"), list):
        network = f"resnet{name.removeprefix('RN').removesuffix('-quickgelu')}_clip_gap"
        model["vision_cfg"] = vision = {"timm_model_name": network, "image_size": vision["image_size"]}
    if pooling is None and vision.get("attentional_pool"):
        pooling = "map"  # CoCa's many queries are for captions; a tower has one
    if pooling is None and not (vision.get("timm_pool") or vision.get("pool_type")):
        pooling = "avg"
    return _config(model, {}, image_size, pooling)


def config_from_timm(name: str, image_size: int | None = None, pooling: str | None = None) -> Config:
    """The configuration of a tower around timm's network ``name``; the mean unless told otherwise."""
    return _config({"vision_cfg": {"timm_model_name": name}}, {}, image_size, pooling or "avg")


def read_config(directory: Path, image_size: int | None = None, pooling: str | None = None) -> Config:
    """The configuration of the vision tower in an open_clip directory; text tower and projection are left behind.

    Raises UserError when the file is missing, unreadable or describes a tower that vlmkit cannot build, and for another
    pooling than the recorded one: weights serve the pooling they were trained with.
    """
    path = directory / CONFIG_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model, preprocess = raw["model_cfg"], raw.get("preprocess_cfg", {})
        vision = model["vision_cfg"]
        unsupported = _unsupported(vision, model.get("embed_dim"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a readable open_clip configuration ({error}); "
            "give a directory written by open_clip or vlmkit."
        ) from error
    if unsupported:
        raise UserError(
            f"The vision tower of {directory} is neither a square ViT nor a timm network as vlmkit builds them "
            f"({', '.join(unsupported)} in vision_cfg); choose another tower."
        )
    config = _config(model, preprocess, image_size, None)
    recorded = recorded_pooling(config)
    if pooling not in (None, recorded):
        raise UserError(
            f"The tower {directory} was trained with the pooling {recorded} and would give other features with "
            f"{pooling}; leave tower.pooling out."
        )
    return config


def _unsupported(vision: Mapping[str, Any], embed_dim: int) -> list[str]:
    """The keys of a ``vision_cfg`` that vlmkit cannot honour."""
    if vision.get("timm_model_name"):
        return ["timm_pool"] if vision.get("timm_pool") in ("abs_attn", "rot_attn") else []
    keys = [key for key in _INTEGERS if not isinstance(vision.get(key), int)]
    if vision.get("patch_dropout"):
        keys.append("patch_dropout")
    if vision.get("attentional_pool") and (vision.get("attn_pooler_queries"), embed_dim) != (1, vision.get("width")):
        keys.append("attentional_pool")
    return keys


def recorded_pooling(config: Config) -> str:
    """avg (mean of the patches), tok (class token) or map (attention pooling), as the configuration says."""
    vision = config["model_cfg"]["vision_cfg"]
    if "timm_model_name" in vision:
        return timm_network.recorded_pooling(vision)
    return "map" if vision.get("attentional_pool") else vision["pool_type"]


def _config(
    model: Mapping[str, Any], preprocess: Mapping[str, Any], image_size: int | None, pooling: str | None
) -> Config:
    vision = model["vision_cfg"]
    if vision.get("timm_model_name"):
        vision, width = timm_network.complete_vision_config(vision, image_size, pooling)
    else:
        vision = _vit_config(vision, image_size, pooling)
        width = vision["width"]
    return {
        "model_cfg": {
            "embed_dim": width,
            "quick_gelu": model.get("quick_gelu", False),
            "vision_cfg": vision,
            "text_cfg": dict(_DUMMY_TEXT),
        },
        "preprocess_cfg": {
            "size": vision["image_size"],
            "mode": "RGB",
            "mean": list(preprocess.get("mean", CLIP_MEAN)),
            "std": list(preprocess.get("std", CLIP_STD)),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def _vit_config(vision: Mapping[str, Any], image_size: int | None, pooling: str | None) -> Config:
    """``vision_cfg`` of a ViT with its pooling written out; None keeps the one it has (open_clip's default: tok)."""
    vision = {"pool_type": "tok", **vision, "image_size": image_size or vision["image_size"], "output_tokens": False}
    if pooling is None:
        return vision
    vision = {key: value for key, value in vision.items() if key not in _ATTENTIONAL}
    if pooling == "map":
        heads = vision["width"] // vision.get("head_width", 64)
        attentional = dict(zip(_ATTENTIONAL, (True, 1, heads), strict=True))
        return {**vision, **attentional, "pool_type": "tok"}
    return {**vision, "pool_type": pooling}


def build_visual(config: Config) -> nn.Module:
    """open_clip's ``VisionTransformer`` or ``TimmModel`` for ``config``, fresh, with its projection taken off."""
    import open_clip

    visual = open_clip.CLIP(**config["model_cfg"]).visual
    if isinstance(visual, open_clip.timm_model.TimmModel):
        visual.head = nn.Identity()
    else:
        visual.proj = None
    return visual


def load_weights(tower: VisionTower, directory: Path) -> None:
    """Load the weights in an open_clip directory into ``tower``; a ViT's positions are interpolated to its patch grid.

    Raises UserError when the safetensors file is missing, damaged, or does not fit its configuration.
    """
    from open_clip.model import resize_pos_embed

    path = directory / WEIGHTS_NAME
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The weights {path} cannot be read ({error}); export the tower again.") from error
    left = _projection_prefixes(tower.config["model_cfg"]["vision_cfg"])
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
        if name.startswith("visual.") and not name.startswith(left)
    }
    try:
        resize_pos_embed(state, tower)
        tower.load_state_dict(state)
    except RuntimeError as error:
        reason = shorten(str(error), 300)
        raise UserError(
            f"The weights {path} do not fit the configuration beside them ({reason}); export the tower again."
        ) from error


def _projection_prefixes(vision: Mapping[str, Any]) -> tuple[str, ...]:
    """How the names of weights begin that project pooled features."""
    if "timm_model_name" not in vision:
        return ("visual.proj",)
    return "visual.head.", f"visual.trunk.{timm_network.classifier_name(vision['timm_model_name'])}."


def check_embed_dim(config: Config, embed_dim: int) -> None:
    """Raise UserError if open_clip cannot project the tower of ``config`` to ``embed_dim``."""
    width, vision = config["model_cfg"]["embed_dim"], config["model_cfg"]["vision_cfg"]
    if vision.get("attentional_pool") and embed_dim != width:
        raise UserError(
            f"open_clip's attention pooling is as wide as the space that images and texts share, so with the pooling "
            f"map embed_dim must be the tower's width; set objective.text.embed_dim to {width}."
        )


def export_open_clip(tower: VisionTower, directory: str | Path, *, text: TextPart | None = None) -> None:
    """Write ``tower`` so that ``open_clip.create_model("local-dir:DIRECTORY")`` loads it.

    Without ``text``, a dummy text tower is written, the projection is the identity, and ``encode_image`` equals
    ``tower.pooled``; with it, ``encode_image`` equals ``tower.pooled(...) @ text.projection``. Raises UserError as
    :func:`check_embed_dim` does.
    """
    import open_clip

    part = _dummy_text(tower.width) if text is None else text
    model = {**tower.config["model_cfg"], "embed_dim": part.projection.shape[1], "text_cfg": dict(part.text_cfg)}
    check_embed_dim(tower.config, model["embed_dim"])
    vision, projection = model["vision_cfg"], part.projection.detach().cpu().float()
    state = {**tower.state_dict(), **part.weights, "logit_scale": part.logit_scale}
    if part.logit_bias is not None:
        model["init_logit_bias"] = float(part.logit_bias)
        state["logit_bias"] = part.logit_bias
    if "timm_model_name" not in vision:
        state["visual.proj"] = projection
    elif vision["timm_proj"] == "linear":
        state["visual.head.proj.weight"] = projection.T
    elif text is not None:
        # This form of the network has no place for a projection but its classifier, which has a bias.
        model["vision_cfg"] = {**vision, "timm_proj": ""}
        classifier = f"visual.trunk.{timm_network.classifier_name(vision['timm_model_name'])}"
        state |= {f"{classifier}.weight": projection.T, f"{classifier}.bias": torch.zeros(len(projection.T))}
    with torch.device("meta"):
        clip = open_clip.CLIP(**model)
    clip.load_state_dict(state, assign=True)  # strict: what open_clip will expect is what is written
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in clip.state_dict().items()}
    directory = Path(directory)
    save_file(weights, directory / WEIGHTS_NAME)
    config = {**tower.config, "model_cfg": model}
    (directory / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _dummy_text(width: int) -> TextPart:
    import open_clip

    with seeded(0):
        clip = open_clip.CLIP(width, dict(_DUMMY_VISION), dict(_DUMMY_TEXT))
    state = clip.state_dict()
    scale = state.pop("logit_scale")
    weights = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    return TextPart(_DUMMY_TEXT, weights, torch.eye(width), scale)
