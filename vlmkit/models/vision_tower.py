"""The vision tower: one interface for ViTs and convnets, fresh or from runs and open_clip directories."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.models import timm_network
from vlmkit.models.features import VisionFeatures
from vlmkit.models.open_clip_layout import (
    CONFIG_NAME,
    Config,
    build_visual,
    config_from_facts,
    config_from_open_clip,
    config_from_timm,
    load_weights,
    read_config,
    recorded_pooling,
)
from vlmkit.models.patch_attention import attention_inputs, attention_of, queries_and_keys, received_attention
from vlmkit.models.seeding import seeded
from vlmkit.runs import open_model

TIMM_PREFIX = "timm:"
"""Before the name of a timm network, where a tower is named."""


class VisionTower(nn.Module):
    """A ViT or convnet that yields patch features, or one pooled vector an image.

    Inside is open_clip's ``VisionTransformer``, or its ``TimmModel`` around a timm network; parameter names are
    open_clip's own (``visual.*``). ``config`` is the content of an ``open_clip_config.json``;
    ``VisionTower(tower.config)`` has the same shape with fresh weights. A convnet has the positions of its last feature
    map as patches.

    Images are uint8 [B, 3, S, S], normalised here on their device with the tower's mean and deviation; a floating
    tensor counts as normalised already. Raises UserError on any other image size, and on construction if the patch
    size does not divide S.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.visual = build_visual(config)
        check_image_size(self.image_size, self.patch_size)

    @property
    def width(self) -> int:
        """Feature width D."""
        return self.config["model_cfg"]["embed_dim"]

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks())

    @property
    def patch_size(self) -> int:
        """Patch side in pixels; of a convnet, the stride of its last feature map."""
        return self._vision["patch_size"] if self._network is None else timm_network.stride(self._network)

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
    def pooling(self) -> str:
        """What ``pooled`` does: avg, tok or map."""
        return recorded_pooling(self.config)

    @property
    def _vision(self) -> Config:
        return self.config["model_cfg"]["vision_cfg"]

    @property
    def _network(self) -> timm_network.Network | None:
        """timm's network; None in open_clip's ViT."""
        return getattr(self.visual, "trunk", None)

    @property
    def _is_convnet(self) -> bool:
        return self._network is not None and not timm_network.is_isotropic(self._network)

    def forward(
        self, pixel_values: torch.Tensor, requires: frozenset[str], levels: tuple[int, ...] = ()
    ) -> VisionFeatures:
        """The features that ``requires`` names: fields of VisionFeatures. No block past the last of them is run.

        ``levels`` are block indices counted from 0; their outputs are concatenated in the order given. Raises UserError
        as :meth:`check_gives` does.
        """
        self.check_gives(requires)
        pixel_values = self._normalised(pixel_values)
        if self._is_convnet:
            return VisionFeatures(self.grid, patches=timm_network.last_feature_map(self._network, pixel_values))
        penultimate = self.num_layers - 2
        blocks = sorted({penultimate, *levels} if requires != {"levels"} else {*levels})
        with self._attention_inputs(requires) as inputs:
            outputs = self.visual.forward_intermediates(  # type: ignore[operator]
                pixel_values, indices=blocks, stop_early=True, intermediates_only=True, output_fmt="NLC"
            )["image_intermediates"]
        by_block = dict(zip(blocks, outputs, strict=True))
        return VisionFeatures(
            self.grid,
            by_block[penultimate] if "patches" in requires else None,
            torch.cat([by_block[block] for block in levels], dim=-1) if "levels" in requires else None,
            *self._patch_attention(inputs),
        )

    def check_gives(self, requires: frozenset[str]) -> None:
        """Raise UserError if the tower does not have these fields of VisionFeatures.

        A convnet's stages have grids of their own and no attention; that of some ViTs cannot be read.
        """
        if self._is_convnet and requires != {"patches"}:
            raise UserError(
                "A convnet's stages have grids of different sizes and no attention, so only ViTs give features of "
                "several levels; choose a ViT, or a compressor that reads patches alone (avgpool)."
            )
        if requires & {"attention", "keys"}:
            attention_of(self.blocks()[-2])

    def _attention_inputs(self, requires: frozenset[str]) -> AbstractContextManager[list[torch.Tensor]]:
        """A list that gets what the penultimate block's attention is given, where ``requires`` asks for attention."""
        if not requires & {"attention", "keys"}:
            return nullcontext([])
        return attention_inputs(attention_of(self.blocks()[-2]))

    def _patch_attention(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """``attention`` and ``keys`` of VisionFeatures, from what :meth:`_attention_inputs` got."""
        if not inputs:
            return None, None
        queries, keys = queries_and_keys(attention_of(self.blocks()[-2]), inputs[0])
        prefix = inputs[0].shape[1] - self.grid[0] * self.grid[1]
        attention = received_attention(queries, keys, prefix, from_class_token=self.pooling == "tok")
        return attention, keys.mean(dim=1)[:, prefix:]

    def pooled(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """One vector an image: [B, D].

        avg: mean over the patches after the final norm, class token excluded (SuperClass, section 3), or over the last
        feature map; tok: the class token after the final norm; map: one learned query that attends to all tokens.
        """
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
        return pixel_values.to(next(self.visual.parameters()).dtype)

    def blocks(self) -> list[nn.Module]:
        """The blocks, first to last: a transformer's, or those of a convnet's stages."""
        if self._network is not None:
            return timm_network.blocks(self._network)
        return list(self.visual.transformer.resblocks)  # type: ignore[union-attr,arg-type]

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Whether blocks are run again in the backward pass instead of keeping what they computed.

        Loss and gradients stay the same; a batch norm folds each batch into its running statistics twice. Raises
        UserError for the few timm networks that cannot.
        """
        model: Any = self.visual if self._network is None else self._network
        try:
            model.set_grad_checkpointing(on)
        except (AssertionError, AttributeError) as error:
            raise UserError(
                f"timm's {self._vision['timm_model_name']} has no gradient checkpointing; turn it off, or choose "
                "another tower."
            ) from error

    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights, in hex: equal fingerprint, equal features."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def check_image_size(size: int, patch: int) -> None:
    """Raise UserError, naming the nearest sizes that fit, if patches do not tile square images of ``size`` pixels."""
    if size % patch:
        near = " or ".join(str(side) for side in (size // patch * patch, (size // patch + 1) * patch) if side)
        raise UserError(f"Images of {size} pixels do not divide into patches of {patch}; ask for {near}.")


def tower_config(name: str | Path, image_size: int | None = None, pooling: str | None = None) -> Config:
    """The configuration of the tower called ``name``, as in ``build_tower``, without its weights."""
    name = str(name)
    directory = weights_directory(name)
    if directory is not None:
        return read_config(directory, image_size, pooling)
    if name.lower() in registry.VISION_TOWERS:
        return config_from_facts(registry.vision_tower(name), image_size, pooling)
    if name.startswith(TIMM_PREFIX):
        return config_from_timm(_known_timm_network(name), image_size, pooling)
    return config_from_open_clip(_known_open_clip_model(name), image_size, pooling)


def build_tower(
    name: str | Path, image_size: int | None = None, seed: int = 0, pooling: str | None = None
) -> VisionTower:
    """The tower called ``name``, in float32 on the CPU.

    ``name`` is a finished pretraining run or a directory in open_clip's layout (their weights and pooling), or, with
    fresh weights that are a function of ``seed`` alone: a registry name, an open_clip model name such as
    ``ViT-B-16-SigLIP``, or ``timm:NETWORK``. ``pooling`` is avg, tok or map; by default what the name states, or avg.

    At another ``image_size`` than the stored one, a ViT's position embeddings are interpolated (bicubic, antialiased:
    open_clip's own way) and the configuration says the new size; timm's ViTs have one size. The global random state is
    left alone. Raises UserError for unknown names, unfinished runs, runs of another kind, damaged files, another
    pooling than that of given weights, and image sizes that the patch size does not divide.
    """
    directory = weights_directory(str(name))
    config = tower_config(name, image_size, pooling)
    with seeded(seed):
        tower = VisionTower(config)
    if directory is not None:
        load_weights(tower, directory)
    return tower


def weights_directory(name: str) -> Path | None:
    """Where the weights of ``name`` lie; None for names that start from fresh ones."""
    path = Path(name)
    if name.lower() in registry.VISION_TOWERS or name.startswith(TIMM_PREFIX):
        return None
    if (path / CONFIG_NAME).is_file():
        return path
    if name.startswith("hf-hub:"):
        raise UserError(
            f"{name}: weights are read from local directories; fetch the model first "
            f"(`hf download {name.removeprefix('hf-hub:')} --local-dir DIR`) and give DIR."
        )
    if path.exists() or os.sep in name:
        return open_model(path, "pretrain-superclass")
    return None


def _known_timm_network(name: str) -> str:
    import timm

    network, known = name.removeprefix(TIMM_PREFIX), timm.list_models()
    plain, _, tag = network.partition(".")
    if tag and plain in known:
        raise UserError(
            f"{name} names pretrained weights, but towers by timm's names start from fresh ones; "
            f"give {TIMM_PREFIX}{plain}."
        )
    if network not in known:
        near = difflib.get_close_matches(network, known, n=3) or ["vit_small_patch16_224"]
        raise UserError(f"timm has no network {network!r}; did you mean {', '.join(near)}?")
    return network


def _known_open_clip_model(name: str) -> str:
    import open_clip

    known = {model.lower(): model for model in open_clip.list_models()}
    if name.lower() in known:
        return known[name.lower()]
    known |= {key: facts.name for key, facts in registry.VISION_TOWERS.items()}
    near = [known[key] for key in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)] or ["ViT-B-16"]
    raise UserError(
        f"There is no vision tower named {name!r}; did you mean {', '.join(near)}? Names are those of `vlmkit models`, "
        "open_clip's own, timm:NETWORK, finished runs and open_clip directories."
    )
