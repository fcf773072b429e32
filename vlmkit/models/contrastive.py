"""Contrastive models: a vision tower beside open_clip's text transformer, in one space."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from vlmkit.config import TextTowerConfig
from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import CONFIG_NAME, WEIGHTS_NAME, TextPart
from vlmkit.models.seeding import seeded
from vlmkit.models.timm_network import classifier_name
from vlmkit.models.vision_tower import VisionTower, build_tower

CONTEXT_LENGTH, VOCAB_SIZE = 77, 49408
"""Ids of a caption, and ids there are, in CLIP's encoding."""

TextShape = tuple[dict[str, int], int]
"""open_clip's ``text_cfg`` of a plain text transformer, and ``embed_dim``."""

_TEXT_WIDTHS = {192: 384, 384: 384, 768: 512, 1024: 768, 1280: 1024}
"""Width of the text tower by that of the tower, where open_clip pairs none with it: as beside its ViTs of that width
(the smallest of all beside ViT-Ti); 512 beside any other."""
_EMBEDDED_WIDTH = 128
_CNN_WIDTH, _CNN_STRIDE = 32, 32
"""Of CLIP's ResNets: feature width over that of the stem, and the stride of the last feature map."""

_START = {"clip": (math.log(1 / 0.07), None), "siglip": (math.log(10), -10.0)}
"""Initial logit scale (its logarithm) and logit bias: CLIP's (arXiv 2103.00020) and SigLIP's (arXiv 2303.15343)."""


def published_text(tower: VisionTower, name: str | None = None) -> TextShape | None:
    """What open_clip pairs with this tower: the text tower of its model whose vision tower has the same shape.

    The shape decides, not the name, so that a run's tower counts as what it is. Where several models share it with
    different text towers (``convnext_base`` and ``convnext_base_w``), the one called ``name`` is taken, or else the one
    of the shortest name, the plain one. None if there is no such model whose text tower is a plain transformer over
    CLIP's ids.
    """
    import open_clip

    models = {model: open_clip.get_model_config(model) for model in open_clip.list_models()}
    alike = [model for model, config in models.items() if _has_plain_text(config) and _same_vision(config, tower)]
    if not alike:
        return None
    chosen = min(alike, key=lambda model: (model.lower() != str(name).lower(), len(model)))
    return models[chosen]["text_cfg"], models[chosen]["embed_dim"]


def _has_plain_text(config: Mapping[str, Any]) -> bool:
    text = config["text_cfg"]
    plain = text.keys() == {"context_length", "vocab_size", "width", "heads", "layers"}
    return plain and (text["context_length"], text["vocab_size"]) == (CONTEXT_LENGTH, VOCAB_SIZE)


def _same_vision(config: Mapping[str, Any], tower: VisionTower) -> bool:
    vision = config["vision_cfg"]
    if "timm_model_name" in vision:
        return vision["timm_model_name"] == tower.config["model_cfg"]["vision_cfg"].get("timm_model_name")
    shape = vision["width"], vision["layers"], vision.get("patch_size")
    if isinstance(vision["layers"], list):
        shape = _CNN_WIDTH * vision["width"], sum(vision["layers"]), _CNN_STRIDE
    return shape == (tower.width, tower.num_layers, tower.patch_size)


def text_config(tower_width: int, settings: TextTowerConfig, published: TextShape | None = None) -> TextShape:
    """The text tower beside a tower: the ``published`` one, or one by the tower's width; ``settings`` override what
    they name. Heads keep their width and the common space that of the text tower, where another width is set.

    Raises UserError if the heads do not divide the width.
    """
    text, embed_dim = published or _text_by_width(tower_width)
    width = settings.width or text["width"]
    heads = settings.heads or max(1, width * text["heads"] // text["width"])
    if width % heads:
        raise UserError(
            f"A text tower of width {width} does not divide into {heads} heads; "
            "set objective.text.heads to a divisor of objective.text.width."
        )
    shape = {"width": width, "heads": heads, "layers": settings.layers or text["layers"]}
    return {**text, **shape}, settings.embed_dim or (embed_dim if width == text["width"] else width)


def _text_by_width(tower_width: int) -> TextShape:
    embedded = tower_width <= _EMBEDDED_WIDTH
    width = _EMBEDDED_WIDTH if embedded else _TEXT_WIDTHS.get(tower_width, 512)
    shape = {"width": width, "heads": 4 if embedded else width // 64, "layers": 2 if embedded else 12}
    return {"context_length": CONTEXT_LENGTH, "vocab_size": VOCAB_SIZE, **shape}, width


class LogitScalars(nn.Module):
    """Logit scale (its logarithm) and, where there is one, logit bias, as the loss reads them: a call gives [1] each.

    They have shape [1], since FSDP2 shards no scalars. Rounded to bf16 a scale would be off by up to 1.6 %, so engines
    are told to leave them in float32 (``contracts.Task``).
    """

    keeps_float32 = True
    logit_bias: nn.Parameter | None

    def __init__(self, scale: float, bias: float | None) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([scale]))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    def forward(self) -> list[torch.Tensor]:
        # Copies: FSDP2 hooks its backward pass to what a module returns, and would hook a parameter again each time.
        return [value.clone() for value in (self.logit_scale, self.logit_bias) if value is not None]


class ContrastiveHead(nn.Module):
    """What matching captions adds to a tower: image projection, text transformer, logit scale and (SigLIP) logit bias.

    ``text_cfg`` and ``quick_gelu`` are open_clip's. Fresh weights are open_clip's too, drawn from ``seed`` alone.
    ``scalars()`` gives the logarithm of the scale and the bias, to be called wherever the model runs.
    """

    def __init__(
        self,
        width: int,
        text_cfg: Mapping[str, Any],
        embed_dim: int,
        kind: Literal["clip", "siglip"] = "clip",
        *,
        quick_gelu: bool = False,
        seed: int = 0,
    ) -> None:
        from open_clip.transformer import QuickGELU, TextTransformer

        super().__init__()
        self.text_cfg = dict(text_cfg)
        activation = QuickGELU if quick_gelu else nn.GELU
        with seeded(seed):
            self.text = TextTransformer(**text_cfg, output_dim=embed_dim, act_layer=activation)
            self.projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        self.scalars = LogitScalars(*_START[kind])

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the logit scale: the parameter, [1]."""
        return self.scalars.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """SigLIP's bias: the parameter, [1]."""
        return self.scalars.logit_bias

    def embed_image(self, features: torch.Tensor) -> torch.Tensor:
        """Pooled tower features [B, width] in the common space: [B, E], of length 1."""
        return _normalised(features.to(self.projection.dtype) @ self.projection)

    def embed_text(self, text_ids: torch.Tensor) -> torch.Tensor:
        """Captions as CLIP ids [B, 77] in the common space: [B, E], of length 1."""
        return _normalised(self.text(text_ids))

    def blocks(self) -> list[nn.Module]:
        """The blocks of the text transformer, first to last."""
        return list(self.text.transformer.resblocks)

    def text_part(self) -> TextPart:
        """What ``export_open_clip`` takes, beside the tower."""
        bias = self.logit_bias
        return TextPart(
            text_cfg=self.text_cfg,
            weights=self.text.state_dict(),
            projection=self.projection.detach(),
            logit_scale=self.logit_scale.detach().squeeze(0),
            logit_bias=None if bias is None else bias.detach().squeeze(0),
        )


def _normalised(embeddings: torch.Tensor) -> torch.Tensor:
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)


class ContrastiveModel(nn.Module):
    """A tower and its contrastive head: images and captions as vectors whose dot product says how well they match."""

    def __init__(self, tower: VisionTower, head: ContrastiveHead) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, S, S] in the common space: [B, E], of length 1."""
        return self.head.embed_image(self.tower.pooled(pixel_values))

    def encode_text(self, text_ids: torch.Tensor) -> torch.Tensor:
        """Captions as CLIP ids [B, 77] in the common space: [B, E], of length 1."""
        return self.head.embed_text(text_ids)


def load_contrastive(directory: str | Path) -> ContrastiveModel:
    """The model that a run of the objective clip, siglip, superclip or lit exported (its ``model/``), in float32 on the
    CPU. Raises UserError if the directory holds no such model."""
    directory = Path(directory)
    tower = build_tower(directory)
    model = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))["model_cfg"]
    weights = load_file(directory / WEIGHTS_NAME)
    kind: Literal["clip", "siglip"] = "siglip" if "logit_bias" in weights else "clip"
    state = {f"text.{name}": tensor for name, tensor in weights.items() if not name.startswith(("visual.", "logit_"))}
    state |= {f"scalars.{name}": tensor.reshape(1) for name, tensor in weights.items() if name.startswith("logit_")}
    try:
        state["projection"] = _projection(weights, model["vision_cfg"])
        head = ContrastiveHead(
            tower.width, model["text_cfg"], model["embed_dim"], kind, quick_gelu=model.get("quick_gelu", False)
        )
        head.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{directory} holds no text tower that vlmkit exported ({shorten(str(error), 300)}); give a run of the "
            "objective clip, siglip, superclip or lit."
        ) from error
    return ContrastiveModel(tower, head)


def _projection(weights: Mapping[str, torch.Tensor], vision: Mapping[str, Any]) -> torch.Tensor:
    """The image projection [width, E], from where ``export_open_clip`` puts it."""
    if "timm_model_name" not in vision:
        return weights["visual.proj"]
    if vision["timm_proj"] == "linear":
        return weights["visual.head.proj.weight"].T
    return weights[f"visual.trunk.{classifier_name(vision['timm_model_name'])}.weight"].T
