"""Vision towers of transformers: CLIP, SigLIP, SigLIP 2 and DINOv2, from a directory in hub layout or the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from vlmkit.errors import UserError
from vlmkit.models.features import VisionFeatures
from vlmkit.models.open_clip_layout import Config
from vlmkit.models.vision_tower import VisionTower, check_image_size
from vlmkit.registry import CLIP_MEAN, CLIP_STD

_HALVES = (0.5, 0.5, 0.5)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What a configuration says of the file it came from, not of the network.
_PROVENANCE = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")


@dataclass(frozen=True)
class _Family:
    """What tells one family of transformers' vision models from another."""

    pooling: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_tokens: int = 0
    """Tokens ahead of the patches that have a position of their own."""


_FAMILIES = {
    "clip_vision_model": _Family("tok", CLIP_MEAN, CLIP_STD, class_tokens=1),
    "siglip_vision_model": _Family("map", _HALVES, _HALVES),
    "siglip2_vision_model": _Family("map", _HALVES, _HALVES),
    "dinov2": _Family("tok", *_IMAGENET, class_tokens=1),
    "dinov2_with_registers": _Family("tok", *_IMAGENET, class_tokens=1),
}


class TransformersTower(VisionTower):
    """A vision model of transformers with the interface of :class:`VisionTower`.

    ``config`` holds ``transformers``, the vision model's own configuration, and ``preprocess_cfg`` with the image side
    (``size``) and the ``mean`` and ``std`` of its pixels; ``TransformersTower(config)`` has fresh weights. Features are
    the entries of transformers' ``hidden_states`` without class and register tokens; block b (from 0) gives entry
    b + 1.
    """

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.visual = AutoModel.from_config(AutoConfig.for_model(**config["transformers"]))
        check_image_size(self.image_size, self.patch_size)

    @property
    def width(self) -> int:
        return self.config["transformers"]["hidden_size"]

    @property
    def patch_size(self) -> int:
        return self.config["transformers"]["patch_size"]

    @property
    def image_size(self) -> int:
        return self.config["preprocess_cfg"]["size"]

    @property
    def pooling(self) -> str:
        return self._family.pooling

    @property
    def _family(self) -> _Family:
        return _FAMILIES[self.config["transformers"]["model_type"]]

    @property
    def _model(self) -> Any:
        return self.visual

    def blocks(self) -> list[nn.Module]:
        encoder = self._model.encoder
        return list(encoder.layers if hasattr(encoder, "layers") else encoder.layer)

    def forward(
        self, pixel_values: torch.Tensor, requires: frozenset[str], levels: tuple[int, ...] = ()
    ) -> VisionFeatures:
        self.check_gives(requires)
        penultimate = self.num_layers - 2
        wanted = {penultimate, *levels} if requires != {"levels"} else {*levels}
        hidden = self._embedded(self._normalised(pixel_values))
        by_block = {}
        with self._attention_inputs(requires) as inputs:
            for index, block in enumerate(self.blocks()[: max(wanted) + 1]):
                hidden = block(hidden, None)
                if index in wanted:
                    by_block[index] = hidden[:, self._num_prefix_tokens :]
        return VisionFeatures(
            self.grid,
            by_block[penultimate] if "patches" in requires else None,
            torch.cat([by_block[block] for block in levels], dim=-1) if "levels" in requires else None,
            *self._patch_attention(inputs),
        )

    @property
    def _num_prefix_tokens(self) -> int:
        return self._family.class_tokens + self.config["transformers"].get("num_register_tokens", 0)

    def _embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the first block reads: [B, tokens, D]."""
        model = self._model
        embedded = model.embeddings(*self._model_inputs(pixels).values())
        return model.pre_layrnorm(embedded) if hasattr(model, "pre_layrnorm") else embedded

    def _model_inputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised images as the model takes them; SigLIP 2 takes patches and the shapes of their grids."""
        if self.config["transformers"]["model_type"] != "siglip2_vision_model":
            return {"pixel_values": pixels}
        (height, width), side = self.grid, self.patch_size
        cut = pixels.unflatten(3, (width, side)).unflatten(2, (height, side))  # [B, 3, h, p, w, p]
        patches = cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([self.grid], device=pixels.device).expand(len(pixels), 2)
        return {"pixel_values": patches, "spatial_shapes": shapes}

    def pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """One vector an image, as transformers pools it: [B, D]; the normalised class token, or by attention."""
        inputs = self._model_inputs(self._normalised(pixel_values))
        if "spatial_shapes" in inputs:
            whole = torch.ones(inputs["pixel_values"].shape[:2], dtype=torch.long, device=pixel_values.device)
            return self._model(**inputs, pixel_attention_mask=whole).pooler_output
        return self._model(**inputs).pooler_output

    def set_gradient_checkpointing(self, on: bool) -> None:
        if on:
            self._model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self._model.gradient_checkpointing_disable()


def is_hub_directory(name: str) -> bool:
    """Whether ``name`` is a local directory in the hub's layout (``config.json``)."""
    return (Path(name) / "config.json").is_file()


def transformers_config(name: str, image_size: int | None = None) -> Config:
    """The configuration of a tower from a directory in hub layout or a hub id; its weights are not read.

    Raises UserError if it cannot be had, or is none of the families that vlmkit knows.
    """
    vision = _vision_config(name)
    own_size = getattr(vision, "image_size", None) or round(vision.num_patches**0.5) * vision.patch_size
    if image_size and hasattr(vision, "image_size"):
        vision.image_size = image_size
    mean, std = _pixel_statistics(name, _FAMILIES[vision.model_type])
    return {
        "transformers": {key: value for key, value in vision.to_dict().items() if key not in _PROVENANCE},
        "preprocess_cfg": {"size": image_size or own_size, "mean": mean, "std": std},
    }


def _vision_config(name: str) -> PreTrainedConfig:
    with _or_ways_on(name):
        whole = AutoConfig.from_pretrained(name, **_source(name))
    vision = getattr(whole, "vision_config", whole)
    if vision.model_type not in _FAMILIES:
        raise UserError(
            f"The model {name} has no vision tower that vlmkit knows ({vision.model_type}); "
            "choose a CLIP, SigLIP, SigLIP 2 or DINOv2 of transformers, or an open_clip tower."
        )
    return vision


def load_transformers_tower(name: str, image_size: int | None = None) -> TransformersTower:
    """The tower ``name`` as in :func:`transformers_config` with its weights, float32 on the CPU.

    At another image size its positions are interpolated by the model's own method. Only safetensors are read and no
    remote code runs. Raises UserError as there, and for weights that are missing or do not fit.
    """
    tower = TransformersTower(transformers_config(name, image_size))
    own = _vision_config(name)
    with _or_ways_on(name), _quiet_about_other_towers():
        model, found = AutoModel.from_pretrained(
            name, config=own, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **_source(name)
        )
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"The weights of {name} lack {len(missing)} tensors of its vision tower ({missing[0]}, ...); "
            "fetch the model again, or give a model whose vision tower stands alone or beside a text tower."
        )
    tower.visual.load_state_dict(_at_size(model, own, tower.image_size))
    return tower


@torch.no_grad()
def _at_size(model: PreTrainedModel, config: PreTrainedConfig, size: int) -> dict[str, torch.Tensor]:
    """The weights of ``model`` with their positions interpolated to images of ``size`` pixels."""
    state = dict(model.state_dict())
    if size == getattr(config, "image_size", size):  # SigLIP 2 has no size: it interpolates on the way
        return state
    tokens = _FAMILIES[config.model_type].class_tokens + (size // config.patch_size) ** 2
    embeddings: Any = model.embeddings
    positions = embeddings.interpolate_pos_encoding(torch.empty(1, tokens, config.hidden_size), size, size)
    name = next(name for name in state if name.startswith("embeddings.position_embedding"))
    state[name] = positions.view(*state[name].shape[:-2], tokens, config.hidden_size)
    return state


def _pixel_statistics(name: str, family: _Family) -> tuple[list[float], list[float]]:
    """Mean and deviation by the model's preprocessor, or its family's where it comes without one."""
    try:
        processor = AutoImageProcessor.from_pretrained(name, **_source(name))
    except (OSError, ValueError):
        return list(family.mean), list(family.std)
    return list(processor.image_mean), list(processor.image_std)


def _source(name: str) -> dict[str, Any]:
    return {"local_files_only": Path(name).is_dir(), "trust_remote_code": False}


@contextmanager
def _quiet_about_other_towers() -> Iterator[None]:
    """Transformers reports every weight it was not asked for; beside a vision tower that is the whole text tower."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextmanager
def _or_ways_on(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        where = "in this directory" if Path(name).is_dir() else "here (no such run or directory, no hub access)"
        raise UserError(
            f"The vision tower {name} cannot be had {where}: {reason}; fetch it where there is a network "
            f"(`hf download {name} --local-dir DIR`) and give DIR, or choose a run of your own or a name of "
            "`vlmkit models`."
        ) from error
