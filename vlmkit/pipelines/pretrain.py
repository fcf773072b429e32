"""SuperClass pretraining: captions in, a vision tower out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vlmkit.config import DEFAULT_TOWER_RUN, PretrainRecipe
from vlmkit.contracts import Batch
from vlmkit.data.captions import CaptionLoader, CaptionTokenizer, collate_captions
from vlmkit.data.loader import Stream, eval_batches
from vlmkit.data.sources import open_captions
from vlmkit.models.superclass import SuperClassModel
from vlmkit.models.vision_tower import build_tower
from vlmkit.pipelines.fit import RunOutcome, fit_and_export, is_finished, prepare
from vlmkit.pipelines.plan import Plan, gigabytes, length, memory_here, model_bytes, number, world_size
from vlmkit.runs import RunDirectory, is_run
from vlmkit.tasks.superclass import SuperClassTask
from vlmkit.training import distributed
from vlmkit.training.metrics import Progress
from vlmkit.training.trainer import Trainer


def plan(recipe: PretrainRecipe, out: Path) -> Plan:
    """What the run would be, and whether its weights and optimizer fit here. Raises UserError for unusable input."""
    source = open_captions(recipe.data.train)
    tower = build_tower(recipe.tower.name, recipe.tower.image_size, recipe.seed)
    tokenizer = CaptionTokenizer(recipe.labels.context_length)
    model = SuperClassModel(tower, tokenizer.vocab_size, recipe.seed)
    trained = sum(p.numel() for p in model.parameters())
    in_tower = sum(p.numel() for p in tower.parameters())
    needed = model_bytes(trained, 0, recipe.train, world_size())
    available, where = memory_here(recipe.train.device)
    facts = (
        ("run", str(out)),
        (
            "tower",
            f"{recipe.tower.name}: {number(in_tower)} parameters, {tower.image_size} px, grid {tower.grid}",
        ),
        (
            "labels",
            f"{tokenizer.vocab_size} CLIP tokens, IDF {recipe.labels.idf}; head of {number(trained - in_tower)}",
        ),
        ("data", f"{recipe.data.train}: {len(source)} images with captions"),
        ("held out", recipe.data.val or "none"),
        ("length", length(recipe.train, len(source))),
        (
            "memory",
            f"{gigabytes(needed)} for weights and optimizer plus activations; {gigabytes(available)} free on {where}",
        ),
    )
    obstacle = None
    if needed > available:
        obstacle = (
            f"{recipe.tower.name} needs {gigabytes(needed)} for its weights and optimizer, but {where} has "
            f"{gigabytes(available)} free; choose a smaller --tower, or --set train.parallel=fsdp on several GPUs."
        )
    return Plan("pretrain-superclass", facts, obstacle)


def pretrain(recipe: PretrainRecipe, out: Path, progress: Progress | None = None) -> RunOutcome:
    """Run a SuperClass recipe in ``out``, resuming what is there; the tower ends in ``out/model`` (open_clip's)."""
    context = distributed.setup(recipe.train.device)
    run = RunDirectory(out)
    source = open_captions(recipe.data.train)
    held_out = open_captions(recipe.data.val) if recipe.data.val else None
    fingerprints = {"train": source.fingerprint} | ({"val": held_out.fingerprint} if held_out else {})
    prepare(run, recipe, fingerprints, context)
    total_steps = recipe.train.total_steps(len(source))
    if is_finished(run, total_steps):
        return RunOutcome(run, already_finished=True)

    tower = build_tower(recipe.tower.name, recipe.tower.image_size, recipe.seed)
    tokenizer = CaptionTokenizer(recipe.labels.context_length)
    task = SuperClassTask(SuperClassModel(tower, tokenizer.vocab_size, recipe.seed), tokenizer, recipe.labels.idf)
    stream = Stream(
        CaptionLoader(source, tokenizer, tower.image_size, recipe.augment, recipe.seed),
        len(source),
        collate_captions,
        global_batch_size=recipe.train.global_batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        rank=context.rank,
        world_size=context.world_size,
        seed=recipe.seed,
        num_workers=recipe.train.num_workers,
    )

    def val_batches() -> Iterator[Batch]:
        assert held_out is not None
        return eval_batches(
            CaptionLoader(held_out, tokenizer, tower.image_size, seed=recipe.seed),
            min(len(held_out), recipe.train.eval_samples),
            stream.micro_batch_size,
            collate_captions,
            num_workers=recipe.train.num_workers,
            rank=context.rank,
            world_size=context.world_size,
        )

    trainer = Trainer(
        recipe.train,
        recipe.seed,
        run,
        task,
        stream,
        total_steps=total_steps,
        val_batches=val_batches if held_out else None,
        max_bad_fraction=recipe.data.max_bad_fraction,
        progress=progress,
        description="pretrain",
    )
    return fit_and_export(trainer, run)


def is_missing_default(tower: str) -> bool:
    """Whether ``tower`` is the default SuperClass run and nobody has made it yet."""
    return tower == DEFAULT_TOWER_RUN and not (is_run(tower) and RunDirectory(tower).finished)


def pretrain_default(progress: Progress | None = None) -> RunOutcome:
    """Make (or finish) the default SuperClass run: the embedded tower on the embedded world."""
    return pretrain(PretrainRecipe(), Path(DEFAULT_TOWER_RUN), progress)
