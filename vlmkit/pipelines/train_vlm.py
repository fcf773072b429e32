"""VLM training: a tower and a language model in, a compressed-token VLM out, in stages align and finetune."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmkit.config import DataConfig, VLMRecipe
from vlmkit.contracts import Source
from vlmkit.data.samples import ConversationSample
from vlmkit.data.sources.opener import open_conversations
from vlmkit.pipelines.fit import RunOutcome, fit_and_export, is_finished, prepare
from vlmkit.pipelines.vlm_feed import VLMFeed
from vlmkit.pipelines.vlm_models import Stage, build_vlm, stage_settings
from vlmkit.runs import RunDirectory
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training import distributed
from vlmkit.training.metrics import Progress
from vlmkit.training.trainer import Trainer


def default_name(recipe: VLMRecipe) -> str:
    """Name of the run directory where the user gave none: what the run is."""
    llm = Path(recipe.llm.name).name.lower()
    return f"vlm-{llm}-{recipe.compressor.name}{'-'.join(map(str, recipe.compressor.counts))}"


def train_vlm(recipe: VLMRecipe, out: Path, progress: Progress | None = None) -> RunOutcome:
    """Run a VLM recipe in ``out``, resuming what is there; the model ends in ``out/model`` (transformers layout).

    With stage "both" the align stage is a run of its own in ``out/align``, whose model the finetune stage starts from.
    """
    if recipe.stage != "both":
        return _run_stage(recipe, recipe.stage, out, recipe.init, progress)
    run = RunDirectory(out)
    run.check(recipe, _Sources.open(recipe.data).fingerprints)
    align = recipe.model_copy(update={"stage": "align"})
    _run_stage(align, "align", run.align_dir, recipe.init, progress)
    return _run_stage(recipe, "finetune", out, str(run.align_dir), progress)


def _run_stage(recipe: VLMRecipe, stage: Stage, out: Path, init: str | None, progress: Progress | None) -> RunOutcome:
    train, data = stage_settings(recipe, stage)
    context = distributed.setup(train.device)
    run = RunDirectory(out)
    sources = _Sources.open(data)
    context.on_main(lambda: run.check(recipe, sources.fingerprints))
    total_steps = train.total_steps(len(sources.train))
    if is_finished(run, total_steps):
        return RunOutcome(run, already_finished=True)
    # Models before the directory: what cannot be loaded must leave nothing behind.
    vlm, tokenizer = build_vlm(recipe, stage, init, context)
    task = VLMTask(vlm, tokenizer, stage, recipe.train_tower)
    prepare(run, recipe, sources.fingerprints, context)
    distributed.place(task, train, context)  # first, so that features are cached of the tower as it is held
    feed = VLMFeed(recipe, train, task, context, progress)
    stream = feed.stream(sources.train)
    val_source = sources.val
    trainer = Trainer(
        train,
        recipe.seed,
        run,
        task,
        stream,
        total_steps=total_steps,
        val_batches=feed.held_out(val_source, stream.micro_batch_size) if val_source else None,
        max_bad_fraction=data.max_bad_fraction,
        progress=progress,
        description=stage,
    )
    return fit_and_export(trainer, run)


@dataclass(frozen=True)
class _Sources:
    train: Source[ConversationSample]
    val: Source[ConversationSample] | None

    @classmethod
    def open(cls, data: DataConfig) -> _Sources:
        return cls(open_conversations(data.train), open_conversations(data.val) if data.val else None)

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"train": self.train.fingerprint} | ({"val": self.val.fingerprint} if self.val else {})
