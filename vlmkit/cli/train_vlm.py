"""``vlmkit train-vlm``: a vision tower and a language model joined by few visual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vlmkit.cli.options import (
    BadFractionOption,
    DataOption,
    DryRunOption,
    JsonOption,
    OutOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SetOption,
    ValOption,
    parse_counts,
    resolve,
)
from vlmkit.cli.output import print_json, print_note, print_plan, print_run_summary
from vlmkit.errors import UserError

if TYPE_CHECKING:
    from vlmkit.config import VLMRecipe


def train_vlm(
    recipe: RecipeOption = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="Language model: name, size such as 7b, hub id or local directory.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            help="Visual tokens; must tile the patch grid. Several, like 1,4,16: one model for all of them (elastic).",
        ),
    ] = None,
    compressor: Annotated[
        str | None, typer.Option("--compressor", help="How patches become visual tokens: see `vlmkit models`.")
    ] = None,
    vision_tower: Annotated[
        str | None,
        typer.Option("--vision-tower", help="Vision tower: a SuperClass run, a name, a hub id or directory."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Input side of the tower in pixels; positions are interpolated.")
    ] = None,
    train_tower: Annotated[
        bool, typer.Option("--train-tower", help="Train the tower too in stage finetune (no feature cache).")
    ] = False,
    weights: Annotated[
        str | None, typer.Option("--weights", help="pretrained, or random: true shape, fresh weights, to measure.")
    ] = None,
    data: DataOption = None,
    val: ValOption = None,
    stage: Annotated[str | None, typer.Option("--stage", help="align, finetune or both.")] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="Model to start from: a VLM run, or a LLaVA-1.5 checkpoint.")
    ] = None,
    cache_limit: Annotated[
        float | None, typer.Option("--cache-limit", help="Largest feature cache in GB; above it none is used.")
    ] = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    seed: SeedOption = None,
    max_bad_fraction: BadFractionOption = None,
    sets: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a vision-language model with a given number of visual tokens on a vision tower of your own.

    Prints its plan first. Without arguments: the embedded language model on the default SuperClass run, which is
    pretrained first if it is not there.
    """
    if as_json and not dry_run:
        raise UserError("--json prints the plan as one JSON object and nothing else; give it together with --dry-run.")
    flags = {
        "llm.name": llm,
        "llm.weights": weights,
        "compressor.num_visual_tokens": parse_counts(tokens) if tokens else None,
        "compressor.name": compressor,
        "vision_tower.name": vision_tower,
        "vision_tower.image_size": image_size,
        "train_tower": train_tower or None,
        "data.train": data,
        "data.val": val,
        "stage": stage,
        "init": init,
        "cache_limit_gb": cache_limit,
        "seed": seed,
        "data.max_bad_fraction": max_bad_fraction,
    }
    resolved = cast("VLMRecipe", resolve("train-vlm", recipe, resume, flags, sets))
    from vlmkit.cli.progress import RichProgress
    from vlmkit.pipelines import pretrain, train_vlm
    from vlmkit.pipelines.plans import plan_vlm

    directory = out or resume or Path("runs") / train_vlm.default_name(resolved)
    plan = plan_vlm.plan(resolved, directory)
    if as_json:
        print_json(plan.as_json())
        return
    print_plan(plan)
    if dry_run:
        return
    plan.require()
    if resolved.init is None and pretrain.is_missing_default(resolved.vision_tower.name):
        print_note(f"{resolved.vision_tower.name} is not there yet: pretraining it first with the default recipe.")
        pretrain.pretrain_default(RichProgress())
    outcome = train_vlm.train_vlm(resolved, directory, RichProgress())
    print_run_summary(outcome, f"Next: vlmkit eval {directory}")
