"""Compressors: from the patch grid to a chosen number of visual tokens. One file each; found by registry name."""

from __future__ import annotations

from vlmkit import registry
from vlmkit.models.compressors.avgpool import AveragePool
from vlmkit.models.compressors.base import Compressor, CompressorShape
from vlmkit.models.compressors.downsample import Downsample, shrunken_image_size
from vlmkit.models.compressors.every_patch import EveryPatch
from vlmkit.models.compressors.pixel_shuffle import PixelShuffle
from vlmkit.models.compressors.prune import Prune
from vlmkit.models.compressors.quecc import QueCC, QueCCPlus
from vlmkit.models.compressors.resampler import Resampler
from vlmkit.models.compressors.tokenpacker import TokenPacker

COMPRESSORS: dict[str, type[Compressor]] = {
    "none": EveryPatch,
    "avgpool": AveragePool,
    "downsample": Downsample,
    "pixel_shuffle": PixelShuffle,
    "tokenpacker": TokenPacker,
    "quecc": QueCC,
    "quecc+": QueCCPlus,
    "resampler": Resampler,
    "prune": Prune,
}


def build_compressor(name: str, shape: CompressorShape) -> Compressor:
    """The compressor of this registry name. Raises UserError for an unknown name or a count that is not legal."""
    return COMPRESSORS[registry.compressor(name).name](shape)


__all__ = ["COMPRESSORS", "Compressor", "CompressorShape", "build_compressor", "shrunken_image_size"]
