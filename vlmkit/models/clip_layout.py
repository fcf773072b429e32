"""Plain ViT towers as transformers' ``CLIPVisionModel``, and back: one network under two layouts of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import Config, plain_vit_config, unplain_settings
from vlmkit.models.vision_tower import VisionTower

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, CLIPVisionModel

LAYER_NORM_EPS = 1e-5
"""Of every norm in open_clip's ViT."""

_QUICK_GELU = {"quick_gelu": True, "gelu": False}

_NAMES = (
    ("visual.", ""),
    ("conv1", "embeddings.patch_embedding"),
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_pre", "pre_layrnorm"),
    ("ln_post", "post_layernorm"),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_", ".layer_norm"),
    (".attn.", ".self_attn."),
    ("c_fc", "fc1"),
    ("c_proj", "fc2"),
)
"""Parts of open_clip's names, and what transformers calls them."""


def to_clip(tower: VisionTower) -> CLIPVisionModel:
    """The tower as a ``CLIPVisionModel`` that shares its weights, to be saved: nothing else in it has storage.

    Hidden states are equal: entry ``i`` of ``hidden_states`` holds the class token and then the patches after block
    ``i - 1``. ``pooler_output`` is the class token, whatever the tower's pooling. The tower is a plain ViT
    (``unplain_settings`` finds nothing).
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    vision = tower.config["model_cfg"]["vision_cfg"]
    config = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=int(tower.width * vision.get("mlp_ratio", 4.0)),
        num_hidden_layers=tower.num_layers,
        num_attention_heads=tower.width // vision.get("head_width", 64),
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        projection_dim=tower.width,
        hidden_act="quick_gelu" if tower.config["model_cfg"]["quick_gelu"] else "gelu",
        layer_norm_eps=LAYER_NORM_EPS,
    )
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tower.state_dict().items():
        theirs = _their_names(name)
        # Query, key and value lie one above the other in open_clip's layout.
        state |= zip(theirs, (piece.contiguous() for piece in tensor.chunk(len(theirs))), strict=True)
    model.load_state_dict(state, assign=True)
    return model


def from_clip(model: CLIPVisionModel, mean: Sequence[float], std: Sequence[float]) -> VisionTower:
    """The tower that shares the weights of ``model`` where the layouts agree, pooling the class token.

    ``mean`` and ``std`` are those its images are normalised with. Raises UserError as :func:`config_from_clip` does.
    """
    with torch.device("meta"):
        tower = VisionTower(config_from_clip(model.config, mean, std))
    # Releases of transformers differ in whether the network lies in an attribute of its own.
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}
    tower.load_state_dict({name: _gather(name, weights) for name in tower.state_dict()}, assign=True)
    return tower


def config_from_clip(config: CLIPVisionConfig, mean: Sequence[float], std: Sequence[float]) -> Config:
    """The configuration of the tower that :func:`from_clip` makes.

    Raises UserError for activations and norms that open_clip's ViT does not have.
    """
    activation, eps = config.hidden_act, config.layer_norm_eps
    if activation not in _QUICK_GELU or eps != LAYER_NORM_EPS:
        raise UserError(
            f"A CLIP tower with the activation {activation} and a layer_norm_eps of {eps} is not one that vlmkit "
            f"builds; it reads those with gelu or quick_gelu and {LAYER_NORM_EPS}."
        )
    vision = {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "head_width": config.hidden_size // config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
    }
    return plain_vit_config(vision, mean, std, quick_gelu=_QUICK_GELU[activation])


def check_plain(tower: VisionTower, layout: str, way_on: str) -> None:
    """Raise UserError, ending in ``way_on``, unless ``layout`` has a place for the tower."""
    odd = unplain_settings(tower.config)
    if odd:
        raise UserError(
            f"{layout} has no place for this tower ({', '.join(odd)} in vision_cfg): it holds plain ViTs with a class "
            f"token and the pooling avg or tok; {way_on}."
        )


def _their_names(name: str) -> list[str]:
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return [name.replace("in_proj_", f"{part}_proj.") for part in "qkv"] if "in_proj_" in name else [name]


def _gather(name: str, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    pieces = [weights[theirs] for theirs in _their_names(name)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
