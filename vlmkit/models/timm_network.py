"""timm networks as vision towers: how open_clip's ``TimmModel`` is to build one, and where its blocks are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import AttentionPool2d, RotAttentionPool2d
from torch import nn

from vlmkit.errors import UserError

Network = Any
"""A timm network: an ``nn.Module`` with timm's common interface, which has no type of its own."""


def complete_vision_config(
    vision: Mapping[str, Any], image_size: int | None, pooling: str | None
) -> tuple[dict[str, Any], int]:
    """open_clip's ``vision_cfg`` of a timm network with every choice written out, and the network's feature width.

    ``pooling`` None keeps what ``vision`` says (``timm_pool``, empty: the network's own). Raises UserError for a
    pooling or image size that the network does not have, and for networks that give no single feature vector.
    """
    name = _variant(vision["timm_model_name"], pooling)
    with torch.device("meta"):
        network: Network = timm.create_model(name)
    pool = _pool(name, network, vision.get("timm_pool", "avg"), pooling)
    size = _image_size(name, network, image_size or vision.get("image_size"))
    try:
        network.reset_classifier(0, pool or None)
    except AssertionError as error:
        raise UserError(f"timm's {name} refuses the pooling {pool} ({error}); set another tower.pooling.") from error
    features = network(torch.empty(2, 3, size, size, device="meta"))
    if not isinstance(features, torch.Tensor) or features.shape != (2, network.num_features):
        raise UserError(
            f"timm's {name} does more than pool its last feature map before it classifies, which open_clip cannot "
            "build; choose another network."
        )
    # With "linear", open_clip strips the classifier off timm's default form of the network; with "none" it asks timm
    # for the form that goes with the pooling. The two place a ViT's last norm differently.
    form = "linear" if vision.get("timm_proj", "linear") in ("linear", "mlp") else "none"
    dropped = ("timm_proj_bias", "timm_drop")
    return {
        **{key: value for key, value in vision.items() if key not in dropped},
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": form,
        "image_size": size,
    }, network.num_features


def recorded_pooling(vision: Mapping[str, Any]) -> str:
    """The pooling that a completed ``vision_cfg`` of a timm network says: avg, tok or map."""
    return {"avg": "avg", "token": "tok"}.get(vision["timm_pool"], "map")


def classifier_name(name: str) -> str:
    """Where timm's network keeps its classifier."""
    return str(timm.get_pretrained_cfg_value(name, "classifier"))


def blocks(network: Network) -> list[nn.Module]:
    """The network's blocks, first to last: those of a ViT, or of a convnet's stages by timm's own grouping."""
    pattern = None
    if not is_isotropic(network) and hasattr(network, "group_matcher"):
        groups = network.group_matcher(coarse=False)
        pattern = groups.get("blocks", groups.get("block_types"))  # HRNets have the other name
    if isinstance(pattern, list):
        # Beside the blocks, a list has the layers between and after them, with a place of their own.
        patterns = [regex for regex, place in pattern if place is None]
        return [module for name, module in network.named_modules() if any(re.fullmatch(p, name) for p in patterns)]
    if isinstance(pattern, str):
        return [module for name, module in network.named_modules() if re.fullmatch(pattern, name)]
    return [network.get_submodule(info["module"]) for info in network.feature_info]


def is_isotropic(network: Network) -> bool:
    """Whether every block gives features of one width on one grid, as those of a plain ViT do."""
    shapes = {(info["num_chs"], info["reduction"]) for info in network.feature_info}
    return hasattr(network, "num_prefix_tokens") and shapes == {(network.num_features, stride(network))}


def stride(network: Network) -> int:
    """Pixels between neighbours of the last feature map: the patch side of a ViT."""
    return network.feature_info[-1]["reduction"]


def last_feature_map(network: Network, pixel_values: torch.Tensor) -> torch.Tensor:
    """The last feature map, row by row: [B, H * W, D]."""
    features = network.forward_features(pixel_values)
    if features.ndim != 4:
        raise UserError(f"timm's {type(network).__name__} gives no feature map; choose a ViT or a convnet.")
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def _variant(name: str, pooling: str | None) -> str:
    """timm has CLIP's ResNets twice: ``NAME_clip`` with their attention pooling, ``NAME_clip_gap`` with the mean."""
    if name.startswith("resnet") and name.endswith("_clip") and pooling == "avg":
        return f"{name}_gap"
    return name.removesuffix("_gap") if name.endswith("_clip_gap") and pooling == "map" else name


def _pool(name: str, network: Network, recorded: str, pooling: str | None) -> str:
    """timm's name of ``pooling``, or of the recorded one."""
    legal = _poolings(network)
    if pooling is not None:
        pool = legal.get(pooling, pooling)
    elif recorded or "" in legal.values():
        pool = recorded
    else:  # the network's own: convnets keep it in their heads, and it is the mean
        own = getattr(network, "global_pool", None)
        pool = own if isinstance(own, str) else "avg"
    if pool not in legal.values():
        raise UserError(f"timm's {name} has no pooling {pooling or pool}; set tower.pooling to {' or '.join(legal)}.")
    return pool


def _poolings(network: Network) -> dict[str, str]:
    """The poolings that a network has, and timm's names of them."""
    if isinstance(getattr(network, "head", None), AttentionPool2d | RotAttentionPool2d):
        return {"map": ""}  # it has no other, and no name
    names = {"avg": "avg"}
    if getattr(network, "cls_token", None) is not None:
        names["tok"] = "token"
    if getattr(network, "attn_pool", None) is not None:
        names["map"] = "map"
    return names


def _image_size(name: str, network: Network, image_size: int | None) -> int:
    height, width = network.default_cfg["input_size"][1:]
    if height != width:
        raise UserError(f"timm's {name} takes images of {height} x {width} pixels; choose a network for square images.")
    # open_clip builds these at their own size only, so weights of another could not be read back.
    if network.default_cfg.get("fixed_input_size") and image_size not in (None, height):
        raise UserError(
            f"timm's {name} takes images of {height} pixels alone; leave tower.image_size out, or choose its sibling "
            f"for {image_size} pixels."
        )
    return image_size or height
