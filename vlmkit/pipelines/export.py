"""A pretraining run's tower in the layout of another library."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vlmkit.errors import UserError
from vlmkit.models.export import Layout, export_timm, export_transformers
from vlmkit.models.open_clip_layout import CONFIG_NAME, WEIGHTS_NAME
from vlmkit.models.vision_tower import build_tower, weights_directory


def export_run(run: Path, layout: Layout, out: Path) -> Path:
    """Write the tower of ``run``, a finished pretraining run or an open_clip directory, to ``out``; returns ``out``.

    ``open_clip`` holds the run's text tower as well, if it trained one; ``transformers`` (``CLIPVisionModel``) and
    ``timm`` hold the vision tower alone. ``out`` appears whole or not at all. Raises UserError if ``out`` exists and is
    not empty, if ``run`` has no weights, and for towers that the layout cannot express.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give another directory to export to.")
    model = weights_directory(str(run))
    if model is None:
        raise UserError(f"{run} has no weights to export; give a finished pretraining run.")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".{out.name}-{os.getpid()}"
    scratch.mkdir()
    try:
        _write(model, layout, scratch)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _write(model: Path, layout: Layout, directory: Path) -> None:
    if layout == "open_clip":
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.copyfile(model / name, directory / name)
    elif layout == "transformers":
        export_transformers(build_tower(model), directory)
    else:
        export_timm(build_tower(model), directory)
