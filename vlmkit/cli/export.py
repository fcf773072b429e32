"""``vlmkit export``: a run in the layout of another library."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vlmkit.cli.output import print_note


class Layout(str, Enum):
    """Libraries that read what is written."""

    open_clip = "open_clip"
    transformers = "transformers"
    timm = "timm"
    llava = "llava"


def export(
    run: Annotated[Path, typer.Argument(help="Finished run, or an open_clip directory.")],
    layout: Annotated[Layout, typer.Option("--layout", "-l", help="What is to read it; llava is for VLM runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write; must be new or empty.")],
) -> None:
    """Write the vision tower of a run in open_clip's, transformers' (CLIPVisionModel) or timm's own layout, or a VLM
    whose visual tokens are all patches as a stock LLaVA (transformers' LlavaForConditionalGeneration)."""
    from vlmkit.pipelines.export import export_run

    note = export_run(run, layout.value, out)
    print_note(f"Wrote {out} for {layout.value}." + (f" {note}" if note else ""))
