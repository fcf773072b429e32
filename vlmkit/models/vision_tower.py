"""The vision tower: one interface for fresh ViTs, SuperClass runs and open_clip directories."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import nn

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.models.features import VisionFeatures
from vlmkit.models.open_clip_layout import (
    CONFIG_NAME,
    Config,
    build_visual,
    config_from_facts,
    load_weights,
    read_config,
)
from vlmkit.models.seeding import seeded
from vlmkit.runs import open_model


class VisionTower(nn.Module):
    """A plain ViT (open_clip's ``VisionTransformer``) that yields patch features, or their pooled mean.

    ``config`` is the content of an ``open_clip_config.json``; ``VisionTower(tower.config)`` has the same shape with
    fresh weights. Parameter names are open_clip's own (``visual.*``).

    Images are uint8 [B, 3, S, S], normalised here on their device with the tower's mean and deviation; a floating
    tensor counts as normalised already. Raises UserError on any other image size.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.visual = build_visual(config)

    @property
    def width(self) -> int:
        """Feature width D."""
        return self._vision["width"]

    @property
    def num_layers(self) -> int:
        """Number of transformer blocks."""
        return self._vision["layers"]

    @property
    def patch_size(self) -> int:
        """Patch side in pixels."""
        return self._vision["patch_size"]

    @property
    def image_size(self) -> int:
        """Image side in pixels."""
        return self._vision["image_size"]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the patch grid, in patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def _vision(self) -> Config:
        return self.config["model_cfg"]["vision_cfg"]

    def forward(
        self, pixel_values: torch.Tensor, requires: frozenset[str], levels: tuple[int, ...] = ()
    ) -> VisionFeatures:
        """The features that ``requires`` names, a subset of {"patches", "levels"}; no block past the last is run.

        ``levels`` are block indices counted from 0; their outputs are concatenated in the order given.
        """
        assert requires and requires <= {"patches", "levels"}, f"unknown features {sorted(requires)}"
        penultimate = self.num_layers - 2
        wanted = {penultimate} if "patches" in requires else set()
        if "levels" in requires:
            wanted |= set(levels)
        blocks = sorted(wanted)
        outputs = self.visual.forward_intermediates(
            self._normalised(pixel_values),
            indices=blocks,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
        )["image_intermediates"]
        by_block = dict(zip(blocks, outputs, strict=True))
        return VisionFeatures(
            grid=self.grid,
            patches=by_block[penultimate] if "patches" in requires else None,
            levels=torch.cat([by_block[block] for block in levels], dim=-1) if "levels" in requires else None,
        )

    def pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Mean over the patches after the final norm, class token excluded: [B, D] (SuperClass, section 3)."""
        return self.visual(self._normalised(pixel_values))

    def _normalised(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.shape[1:] != (3, self.image_size, self.image_size):
            raise UserError(
                f"The vision tower takes RGB images of {self.image_size} x {self.image_size} pixels, not a batch of "
                f"shape {tuple(pixel_values.shape)}; resize them or build the tower with another image_size."
            )
        if pixel_values.dtype == torch.uint8:
            # Made here, not buffers: a cast of the module to bf16 or a meta-device start would spoil buffers.
            preprocess, device = self.config["preprocess_cfg"], pixel_values.device
            mean = torch.tensor(preprocess["mean"], device=device).view(3, 1, 1)
            std = torch.tensor(preprocess["std"], device=device).view(3, 1, 1)
            pixel_values = (pixel_values.float() / 255 - mean) / std
        return pixel_values.to(self.visual.conv1.weight.dtype)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        return list(self.visual.transformer.resblocks)

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights, in hex: equal fingerprint, equal features."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def tower_config(name: str | Path, image_size: int | None = None) -> Config:
    """The configuration of the tower called ``name``, as in ``build_tower``, without its weights."""
    directory = _weights_directory(str(name))
    if directory is None:
        return config_from_facts(registry.vision_tower(str(name)), image_size)
    return read_config(directory, image_size)


def build_tower(name: str | Path, image_size: int | None = None, seed: int = 0) -> VisionTower:
    """The tower called ``name``, in float32 on the CPU.

    ``name`` is a registry name (fresh weights, a function of ``seed`` alone), a finished SuperClass run, or a directory
    in open_clip's layout (their weights). At another ``image_size`` than the stored one, position embeddings are
    interpolated (bicubic, antialiased: open_clip's own way) and the configuration says the new size. The global random
    state is left alone. Raises UserError for unknown names, unfinished runs, runs of another kind, damaged files and
    image sizes that the patch size does not divide.
    """
    directory = _weights_directory(str(name))
    with seeded(seed):
        tower = VisionTower(tower_config(name, image_size))
    if directory is not None:
        load_weights(tower, directory)
    return tower


def _weights_directory(name: str) -> Path | None:
    """Where the weights of ``name`` lie; None for what only the registry can know."""
    path = Path(name)
    if name.lower() in registry.VISION_TOWERS:
        return None
    if (path / CONFIG_NAME).is_file():
        return path
    if path.exists() or os.sep in name:
        return open_model(path, "pretrain-superclass")
    return None
