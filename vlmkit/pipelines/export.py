"""A run in the layout of another library: the tower of a pretraining run, or a whole VLM."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from vlmkit.errors import UserError
from vlmkit.models.export import Layout, export_timm, export_transformers, reading_note
from vlmkit.models.llava_layout import export_llava
from vlmkit.models.open_clip_layout import CONFIG_NAME, WEIGHTS_NAME
from vlmkit.models.vision_tower import build_tower, weights_directory
from vlmkit.pipelines.vlm_models import load_vlm
from vlmkit.runs import open_model

README = "README.md"


def export_run(run: Path, layout: Layout | Literal["llava"], out: Path) -> str | None:
    """Write ``run`` to ``out`` in the layout of another library.

    Of a finished pretraining run or an open_clip directory: ``open_clip`` holds the text tower as well, if the run
    trained one; ``transformers`` (``CLIPVisionModel``) and ``timm`` hold the vision tower alone. Of a finished VLM run
    whose visual tokens are all patches: ``llava`` (``LlavaForConditionalGeneration``). A new ``out`` appears whole or
    not at all. Returns what a reader of the layout would get wrong, if anything; ``out/README.md`` says the same.
    Raises UserError if ``out`` exists and is not empty or cannot be written, if ``run`` has no weights, and for models
    that the layout cannot express.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give another directory to export to.")
    model = open_model(run, "train-vlm") if layout == "llava" else weights_directory(str(run))
    if model is None:
        raise UserError(f"{run} has no weights to export; give a finished pretraining run.")
    # What is there already may be the working directory, or where a disk is mounted: it is filled, not replaced.
    filled = out.exists()
    scratch = (out if filled else out.parent) / f".export-{os.getpid()}"
    try:
        scratch.mkdir(parents=True)
        note = _write_vlm(run, scratch) if layout == "llava" else _write_tower(model, layout, scratch)
        if note:
            (scratch / README).write_text(f"# Read this model right\n\n{note}\n", encoding="utf-8")
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


def _write_tower(model: Path, layout: Layout, directory: Path) -> str | None:
    tower = build_tower(model)
    if layout == "open_clip":
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.copyfile(model / name, directory / name)
    elif layout == "transformers":
        export_transformers(tower, directory)
    else:
        export_timm(tower, directory)
    return reading_note(tower, layout, model)


def _write_vlm(run: Path, directory: Path) -> str | None:
    vlm, tokenizer = load_vlm(run)
    return export_llava(vlm, tokenizer, directory)
