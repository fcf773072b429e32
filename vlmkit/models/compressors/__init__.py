"""Compressors: from the patch grid to a chosen number of visual tokens. One file each; found by registry name."""

from __future__ import annotations

from vlmkit import registry
from vlmkit.models.compressors.avgpool import AveragePool
from vlmkit.models.compressors.base import Compressor, CompressorShape
from vlmkit.models.compressors.quecc import QueCC

COMPRESSORS: dict[str, type[Compressor]] = {"avgpool": AveragePool, "quecc": QueCC}


def build_compressor(name: str, shape: CompressorShape) -> Compressor:
    """The compressor of this registry name. Raises UserError for an unknown name or a count that does not tile."""
    return COMPRESSORS[registry.compressor(name).name](shape)


__all__ = ["COMPRESSORS", "AveragePool", "Compressor", "CompressorShape", "QueCC", "build_compressor"]
