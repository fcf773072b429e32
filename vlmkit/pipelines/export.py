"""A pretraining run's tower in the layout of another library."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vlmkit.errors import UserError
from vlmkit.models.export import Layout, export_timm, export_transformers, reading_note
from vlmkit.models.open_clip_layout import CONFIG_NAME, WEIGHTS_NAME
from vlmkit.models.vision_tower import build_tower, weights_directory

README = "README.md"


def export_run(run: Path, layout: Layout, out: Path) -> str | None:
    """Write the tower of ``run``, a finished pretraining run or an open_clip directory, to ``out``.

    ``open_clip`` holds the run's text tower as well, if it trained one; ``transformers`` (``CLIPVisionModel``) and
    ``timm`` hold the vision tower alone. A new ``out`` appears whole or not at all. Returns what a reader of the layout
    would get wrong, if anything; ``out/README.md`` says the same. Raises UserError if ``out`` exists and is not empty
    or cannot be written, if ``run`` has no weights, and for towers that the layout cannot express.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give another directory to export to.")
    model = weights_directory(str(run))
    if model is None:
        raise UserError(f"{run} has no weights to export; give a finished pretraining run.")
    # What is there already may be the working directory, or where a disk is mounted: it is filled, not replaced.
    filled = out.exists()
    scratch = (out if filled else out.parent) / f".export-{os.getpid()}"
    try:
        scratch.mkdir(parents=True)
        note = _write(model, layout, scratch)
        if filled:
            for path in scratch.iterdir():
                path.rename(out / path.name)
        else:
            scratch.rename(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give another directory to export to.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return note


def _write(model: Path, layout: Layout, directory: Path) -> str | None:
    tower = build_tower(model)
    if layout == "open_clip":
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.copyfile(model / name, directory / name)
    elif layout == "transformers":
        export_transformers(tower, directory)
    else:
        export_timm(tower, directory)
    note = reading_note(tower, layout, model)
    if note:
        (directory / README).write_text(f"# Read this tower right\n\n{note}\n", encoding="utf-8")
    return note
