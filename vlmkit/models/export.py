"""Vision towers in the layouts of transformers and timm; open_clip's is their own (``open_clip_layout``)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import CONFIG_NAME
from vlmkit.models.vision_tower import VisionTower

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

Layout = Literal["open_clip", "transformers", "timm"]

# What a vision_cfg may set without leaving the plain ViT that the other layouts have.
_PLAIN = {"width", "layers", "head_width", "mlp_ratio", "patch_size", "image_size", "pool_type", "output_tokens"}

_TRANSFORMERS_NAMES = {
    "conv1": "embeddings.patch_embedding",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    r"transformer\.resblocks\.": "encoder.layers.",
    r"\.ln_": ".layer_norm",
    r"\.attn\.": ".self_attn.",
    "c_fc": "fc1",
    "c_proj": "fc2",
}
"""Parts of open_clip's names, as patterns, and what transformers calls them."""

_TOWER_WAYS_ON = "export it as open_clip, or a timm network as timm"
_PUBLISHED_ORIGIN = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
"""What timm says of the published weights of a network, and not of these."""


def export_transformers(tower: VisionTower, directory: str | Path) -> None:
    """Write a plain ViT so that ``CLIPVisionModel.from_pretrained(DIRECTORY)`` loads it, with its image processor.

    What the model gives is as in :func:`clip_vision_model` (see also :func:`reading_note`). Raises UserError for towers
    that this layout cannot express.
    """
    from transformers import CLIPImageProcessor

    model = clip_vision_model(tower, "transformers' CLIPVisionModel", _TOWER_WAYS_ON)
    with no_progress_bar():
        model.save_pretrained(directory)
    side, preprocess = tower.image_size, tower.config["preprocess_cfg"]
    processor = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=preprocess["mean"],
        image_std=preprocess["std"],
    )
    processor.save_pretrained(directory)


def clip_vision_model(tower: VisionTower, layout: str, ways_on: str) -> CLIPVisionModel:
    """The tower as transformers' CLIP, sharing its weights; to be saved, for nothing else in it need have storage.

    Hidden states are equal: entry ``i`` of ``hidden_states`` holds the class token and then the patches after block
    ``i - 1``. ``pooler_output`` is the class token, whatever the tower's pooling. Raises UserError, naming the
    ``layout`` that is written and ending in ``ways_on``, for other towers.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if isinstance(tower.visual, CLIPVisionModel):
        return tower.visual
    vision = _plain_vision(tower, layout, ways_on)
    config = CLIPVisionConfig(
        hidden_size=tower.width,
        intermediate_size=int(tower.width * vision.get("mlp_ratio", 4.0)),
        num_hidden_layers=tower.num_layers,
        num_attention_heads=_num_heads(vision),
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        projection_dim=tower.width,
        hidden_act="quick_gelu" if tower.config["model_cfg"]["quick_gelu"] else "gelu",
        layer_norm_eps=1e-5,
    )
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    model.load_state_dict(_transformers_state(tower), assign=True)
    return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """transformers draws a bar for every file it writes, be it one of a second."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def reading_note(tower: VisionTower, layout: Layout, model: str | Path) -> str | None:
    """What a reader of ``layout`` must know of ``tower``, exported from the open_clip directory ``model``; or None.

    transformers' ``CLIPVisionModel`` has no place for the pooling avg, and open_clip none for a model without a text
    tower.
    """
    if layout == "transformers" and tower.pooling == "avg":
        return (
            "The feature of an image is the mean over its patches; pooler_output is an untrained class token. "
            "With `outputs = model(pixel_values)`, use:\n\n"
            "    model.post_layernorm(outputs.last_hidden_state)[:, 1:].mean(dim=1)"
        )
    described = json.loads((Path(model) / CONFIG_NAME).read_text(encoding="utf-8"))["model_cfg"]
    if layout == "open_clip" and described["text_cfg"] == tower.config["model_cfg"]["text_cfg"]:
        return (
            "The text tower is a placeholder, untrained, that open_clip's loader needs: use encode_image alone. "
            "For a text tower to match, train one on the frozen vision tower first (--objective lit)."
        )
    return None


def _transformers_state(tower: VisionTower) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in tower.state_dict().items():
        name, tensor = name.removeprefix("visual."), tensor.detach().cpu()
        for theirs, ours in _TRANSFORMERS_NAMES.items():
            name = re.sub(theirs, ours, name)
        if "in_proj_" in name:  # query, key and value, one above the other
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("in_proj_", f"{part}_proj.")] = piece.contiguous()
        else:
            state[name] = tensor
    return state


def export_timm(tower: VisionTower, directory: str | Path) -> None:
    """Write the tower in timm's hub layout: ``timm.create_model("local-dir:DIRECTORY", pretrained=True)`` loads it.

    The model's output equals ``tower.pooled`` of normalised images. Raises UserError for towers that timm cannot
    express.
    """
    import timm
    from timm.models import save_for_hf
    from timm.models.vision_transformer import checkpoint_filter_fn

    network: Any
    if "timm_model_name" in tower.config["model_cfg"]["vision_cfg"]:
        network = tower.visual.trunk
    else:
        vision = _plain_vision(tower, "timm's VisionTransformer", _TOWER_WAYS_ON)
        arguments = {
            "img_size": tower.image_size,
            "patch_size": tower.patch_size,
            "embed_dim": tower.width,
            "depth": tower.num_layers,
            "num_heads": _num_heads(vision),
            "mlp_ratio": vision.get("mlp_ratio", 4.0),
            "global_pool": "avg" if tower.pooling == "avg" else "token",
            "fc_norm": False,  # the final norm comes before the mean, not after it
            "num_classes": 0,
        }
        activation = "_quickgelu" if tower.config["model_cfg"]["quick_gelu"] else ""
        # Of the named network, the arguments leave nothing but pre_norm, the epsilon of its norms and the activation.
        network = timm.create_model(f"vit_base_patch16_clip{activation}_224", **arguments)
        state = {name: tensor.detach().cpu() for name, tensor in tower.state_dict().items()}
        network.load_state_dict(checkpoint_filter_fn(state, network))
    preprocess = tower.config["preprocess_cfg"]
    data = {"input_size": (3, tower.image_size, tower.image_size), "interpolation": "bicubic", "crop_pct": 1.0}
    data |= {"mean": tuple(preprocess["mean"]), "std": tuple(preprocess["std"])}
    save_for_hf(network, str(directory), safe_serialization=True, data_config=data)
    path = Path(directory) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in _PUBLISHED_ORIGIN:
        config["pretrained_cfg"].pop(key, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _plain_vision(tower: VisionTower, layout: str, ways_on: str) -> dict[str, Any]:
    """The tower's ``vision_cfg`` if it is a ViT that ``layout`` can express."""
    if "transformers" in tower.config:
        odd, where = [tower.config["transformers"]["model_type"]], "its model_type"
    else:
        vision = tower.config["model_cfg"]["vision_cfg"]
        odd, where = sorted(key for key, value in vision.items() if key not in _PLAIN and value), "vision_cfg"
    if odd:
        raise UserError(
            f"{layout} has no place for this tower ({', '.join(odd)} in {where}): it holds plain ViTs with a class "
            f"token and the pooling avg or tok; {ways_on}."
        )
    return vision


def _num_heads(vision: dict[str, Any]) -> int:
    return vision["width"] // vision.get("head_width", 64)
