"""``vlmkit pretrain-superclass``: captions in, a vision backbone out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vlmkit.cli.options import (
    BadFractionOption,
    DataOption,
    DryRunOption,
    OutOption,
    RecipeOption,
    ResumeOption,
    SeedOption,
    SetOption,
    ValOption,
    resolve,
)
from vlmkit.cli.output import print_plan, print_run_summary

if TYPE_CHECKING:
    from vlmkit.config import PretrainRecipe


def pretrain_superclass(
    recipe: RecipeOption = None,
    data: DataOption = None,
    val: ValOption = None,
    objective: Annotated[
        str | None, typer.Option("--objective", help="superclass, clip, siglip, superclip, or lit (frozen --tower).")
    ] = None,
    tower: Annotated[str | None, typer.Option("--tower", help="Vision tower, by registry name or run.")] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Length of the run in samples seen.")] = None,
    out: OutOption = None,
    resume: ResumeOption = None,
    seed: SeedOption = None,
    max_bad_fraction: BadFractionOption = None,
    sets: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Pretrain a vision backbone by classifying images into the tokens of their captions (SuperClass).

    Without arguments: the embedded tower on the embedded world, a few minutes on two cores. --objective picks another
    way to learn from captions under the same loop: matching them (clip, siglip), both (superclip), or training a text
    tower to match a frozen image tower (lit).
    """
    flags = {
        "data.train": data,
        "data.val": val,
        "objective.name": objective,
        "tower.name": tower,
        "train.samples": samples,
        "seed": seed,
        "data.max_bad_fraction": max_bad_fraction,
    }
    resolved = cast("PretrainRecipe", resolve("pretrain-superclass", recipe, resume, flags, sets))
    from vlmkit.cli.progress import RichProgress
    from vlmkit.config import DEFAULT_TOWER_RUN
    from vlmkit.pipelines import pretrain
    from vlmkit.pipelines.plans import plan_pretrain

    directory = out or resume or Path(DEFAULT_TOWER_RUN)
    progress = RichProgress()
    plan = plan_pretrain.plan(resolved, directory, progress)
    print_plan(plan)
    if dry_run:
        return
    plan.require()
    outcome = pretrain.pretrain(resolved, directory, progress)
    print_run_summary(outcome, f"Next: vlmkit eval {directory}, or vlmkit train-vlm --vision-tower {directory}")
