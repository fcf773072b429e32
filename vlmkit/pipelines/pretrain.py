"""Pretraining from captions: classification, matching, or both; a vision tower out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlmkit.config import DEFAULT_TOWER_RUN, PretrainRecipe
from vlmkit.contracts import Batch
from vlmkit.data.caption_tokenizers import ClipTokenizer, LabelTokenizer, build_label_tokenizer
from vlmkit.data.captions import CaptionCollate, CaptionLoader
from vlmkit.data.corpus import CorpusCounts, count_corpus
from vlmkit.data.disk_cache import cache_folder
from vlmkit.data.loader import Stream, eval_batches
from vlmkit.data.samples import CaptionSource
from vlmkit.data.sources.opener import open_captions
from vlmkit.evals.label_report import label_report
from vlmkit.pipelines.fit import PassProgress, RunOutcome, fit_and_export, is_finished, prepare
from vlmkit.pipelines.frozen_features import open_frozen_features
from vlmkit.runs import RunDirectory, is_run
from vlmkit.tasks.build import build_task, needs
from vlmkit.training import distributed
from vlmkit.training.distributed import DistributedContext
from vlmkit.training.metrics import Progress
from vlmkit.training.trainer import Trainer

if TYPE_CHECKING:
    from vlmkit.tasks.pretraining import PretrainingTask

EVAL_BATCH_SIZE = 128
"""Samples of a held-out batch, whatever the training batch: how well captions are told apart depends on how many."""


def pretrain(recipe: PretrainRecipe, out: Path, progress: Progress | None = None) -> RunOutcome:
    """Run a recipe in ``out``, resuming what is there; the model ends in ``out/model`` (open_clip's layout).

    A run that classifies (superclass, superclip) also writes its label report (``label_report.json`` and ``.png``)
    before its model; clip, siglip and lit have no labels to report on. The frozen tower of lit runs once over the
    source where it can (``frozen_features``).
    """
    context = distributed.setup(recipe.train.device)
    run = RunDirectory(out)
    with PassProgress(progress, "index") as passes:
        source = open_captions(recipe.data.train, passes)
        held_out = open_captions(recipe.data.val, passes) if recipe.data.val else None
    with PassProgress(progress, "captions") as passes:
        labels, corpus = _labels(recipe, source, passes)
    fingerprints = {"train": source.fingerprint} | ({"val": held_out.fingerprint} if held_out else {})
    if labels is not None:
        fingerprints["labels"] = labels.fingerprint
    context.on_main(lambda: run.check(recipe, fingerprints))
    total_steps = recipe.train.total_steps(len(source))
    if is_finished(run, total_steps):
        return RunOutcome(run, already_finished=True)
    # The model before the directory: what cannot be built must leave nothing behind.
    task = build_task(recipe, labels, corpus)
    prepare(run, recipe, fingerprints, context)
    text = ClipTokenizer() if "text_ids" in needs(recipe.objective) else None
    size = task.tower.image_size
    task.to(context.device)
    with PassProgress(progress, "features") as passes:
        features = open_frozen_features(recipe, source, task.tower, context, passes)
    load = partial(CaptionLoader, image_size=size, seed=recipe.seed)
    collate = CaptionCollate(labels, text)
    stream = _stream(recipe, source, load(source, augment=recipe.augment, features=features), collate, context)

    def val_batches() -> Iterator[Batch]:
        assert held_out is not None
        return eval_batches(
            load(held_out),
            min(len(held_out), recipe.train.eval_samples),
            EVAL_BATCH_SIZE,
            collate,
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
    return fit_and_export(trainer, run, lambda: _report_labels(recipe, source, task, run))


def _stream(
    recipe: PretrainRecipe,
    source: CaptionSource,
    load: CaptionLoader,
    collate: CaptionCollate,
    context: DistributedContext,
) -> Stream:
    return Stream(
        load,
        source,
        collate,
        global_batch_size=recipe.train.global_batch_size,
        micro_batch_size=recipe.train.micro_batch_size,
        rank=context.rank,
        world_size=context.world_size,
        seed=recipe.seed,
        num_workers=recipe.train.num_workers,
    )


def _labels(
    recipe: PretrainRecipe, source: CaptionSource, progress: PassProgress
) -> tuple[LabelTokenizer | None, CorpusCounts | None]:
    """What captions are classified into, where they are, and the counts of the corpus, where it is counted."""
    if "label_ids" not in needs(recipe.objective):
        return None, None
    labels = build_label_tokenizer(recipe.labels, source, cache_folder("captions"), progress)
    if recipe.labels.idf != "corpus":
        return labels, None
    return labels, count_corpus(source, labels.tokenizer, cache_folder("captions"), progress)


def _report_labels(recipe: PretrainRecipe, source: CaptionSource, task: PretrainingTask, run: RunDirectory) -> None:
    if task.classification is None:
        return
    labels, frequency = task.classification.tokenizer, task.classification.frequency
    weights = frequency.weights(torch.arange(labels.vocab_size, device=frequency.num_documents.device)).cpu()
    report = label_report(source, labels, recipe.labels, weights if recipe.labels.idf != "none" else None)
    report.write(run.path)


def is_missing_default(tower: str) -> bool:
    """Whether ``tower`` is the default SuperClass run and nobody has made it yet."""
    return tower == DEFAULT_TOWER_RUN and not (is_run(tower) and RunDirectory(tower).finished)


def pretrain_default(progress: Progress | None = None) -> RunOutcome:
    """Make (or finish) the default SuperClass run: the embedded tower on the embedded world."""
    return pretrain(PretrainRecipe(), Path(DEFAULT_TOWER_RUN), progress)
