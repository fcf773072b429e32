"""Evaluation of towers: probes of frozen features, zero-shot, fine-tuning, captions, labels."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from safetensors.torch import load_file

from vlmkit.config import PretrainRecipe
from vlmkit.data.caption_tokenizers import ClipTokenizer, load_label_tokenizer
from vlmkit.data.sources.opener import open_captions
from vlmkit.errors import UserError
from vlmkit.evals import caption, finetune
from vlmkit.evals.label_report import PICTURE_FILE, LabelReport, TokenRow, label_report, read_label_report
from vlmkit.evals.probes.few_shot import SHOTS, few_shot
from vlmkit.evals.probes.knn import nearest_neighbours
from vlmkit.evals.probes.linear import logistic_regression
from vlmkit.evals.probes.linear_mae import mae_linear_probe
from vlmkit.evals.probes.result import PairedResult, Probe
from vlmkit.evals.progress import shown
from vlmkit.evals.scoring.cider import SCALE
from vlmkit.evals.statistics import mean_and_stderr, paired_difference
from vlmkit.evals.zero_shot import zero_shot
from vlmkit.losses.token_frequency import TokenFrequency
from vlmkit.models.contrastive import load_contrastive
from vlmkit.pipelines.evaluation.reports import EvalSettings, Report
from vlmkit.pipelines.evaluation.tower_subject import TowerSubject
from vlmkit.runs import ResultRow, RunDirectory
from vlmkit.training.metrics import Progress

SMALL_SET = 50_000
"""Training images up to which scikit-learn's linear probe is the default task."""
WITHOUT_ROWS = ("label_report",)
"""Tasks that tell of a run in words, without a score."""
_READS = {"zero_shot": ("--test-data",), "label_report": ("--train-data",)}
"""The sets that a task reads, where it is not both."""


def evaluate_tower(
    run: RunDirectory,
    recipe: PretrainRecipe,
    tasks: Sequence[str],
    settings: EvalSettings,
    progress: Progress | None = None,
) -> Iterator[Report]:
    """A report of each task (none given: a linear probe) on the finished run of ``recipe``, computed when asked for.

    Raises UserError, before anything is computed, for an unfinished run, for tasks that do not fit it, and as
    :func:`check_data` does.
    """
    for task in tasks:
        _check(task, run, recipe)
    check_data(tasks or ["linear_probe"], settings)
    subject = TowerSubject(run, recipe, settings, progress)
    if not tasks:
        tasks = ["linear_probe" if len(subject.train) <= SMALL_SET else "linear_probe_mae"]
    return (TASKS[task](subject) for task in tasks)


def fitting_tasks(recipe: PretrainRecipe) -> list[str]:
    """The tasks that a run of ``recipe`` can be evaluated on."""
    objective = recipe.objective.name
    unfit = {"zero_shot": objective == "superclass", "label_report": objective not in ("superclass", "superclip")}
    return [name for name in TASKS if not unfit.get(name)]


def check_data(tasks: Iterable[str], settings: EvalSettings) -> None:
    """Raise UserError where only one of a task's two sets is given: the other would be the embedded world's."""
    given = {"--train-data": settings.train_data, "--test-data": settings.test_data}
    for task in tasks:
        missing = [option for option in _READS.get(task, given) if not given[option]]
        if missing and any(given.values()):
            here = " ".join(f"{option} {value}" for option, value in given.items() if value)
            raise UserError(f"{here} is given, but {task} reads {missing[0]}, which is missing; give it as well.")


def _check(task: str, run: RunDirectory, recipe: PretrainRecipe) -> None:
    objective, fit = recipe.objective.name, fitting_tasks(recipe)
    if task == "zero_shot" and task not in fit:
        raise UserError(
            f"{run.path} is a classification run, without a text tower that zero_shot could compare images with; "
            f"train one on the frozen tower first (LiT): `{_lit_command(run)}`, then evaluate {run.path}-lit."
        )
    if task not in fit:
        near = difflib.get_close_matches(task.lower(), fit, n=1)
        hint = f"did you mean {near[0]}? It" if near else "it"
        raise UserError(
            f"{run.path} is a vision tower (objective {objective}), for which there is no task {task!r}; "
            f"{hint} can be evaluated with --tasks {', '.join(fit)}."
        )


def _lit_command(run: RunDirectory) -> str:
    """The LiT stage of a classification run: its own data, length and schedule."""
    recipe, tower, out = (shlex.quote(str(path)) for path in (run.recipe_path, run.path, f"{run.path}-lit"))
    return f"vlmkit pretrain-superclass --recipe {recipe} --objective lit --tower {tower} --out {out}"


def _probe(
    subject: TowerSubject, task: str, title: str, scoring: str, probes: Mapping[str, Probe], *notes: str
) -> Report:
    """A report of probes of frozen features, by the name of their setting."""
    pairs: list[tuple[str, PairedResult]] = []
    total = len(subject.splits) * len(probes)
    with shown(subject.progress, total, task) as report:
        for trained, random in subject.splits:
            for setting, probe in probes.items():
                pairs.append((setting, PairedResult(probe(trained), probe(random))))
                if report is not None:
                    report(len(pairs), total)
    return subject.paired_report(title, task, scoring, pairs, list(notes))


def _linear_probe(subject: TowerSubject) -> Report:
    return _probe(subject, "linear_probe", "Linear probe", "logistic_regression", {"": logistic_regression})


def _linear_probe_mae(subject: TowerSubject) -> Report:
    probe = partial(mae_linear_probe, device=subject.device)
    notes = (
        "Unlike the published protocol: features of centre views, computed once, without augmentation; the base rate "
        "is searched on held-out training images.",
        "edge: the best rate is the lowest or highest tried; a better one may lie beyond.",
    )
    return _probe(subject, "linear_probe_mae", "Linear probe (MAE's protocol)", "lars", {"": probe}, *notes)


def _few_shot(subject: TowerSubject) -> Report:
    probes = {f"{shots}-shot": partial(few_shot, shots=shots) for shots in SHOTS}
    note = "± is the standard deviation over draws of the shots; 2 s.e. counts draws and test images."
    return _probe(subject, "few_shot", "Few-shot ridge regression", "ridge", probes, note)


def _knn(subject: TowerSubject) -> Report:
    probe = partial(nearest_neighbours, device=subject.device)
    return _probe(subject, "knn", "Nearest neighbours", "cosine_knn", {"": probe})


def _zero_shot(subject: TowerSubject) -> Report:
    model = load_contrastive(subject.model_dir).to(subject.device).eval()
    with shown(subject.progress, len(subject.test), "zero_shot") as report:
        results = zero_shot(
            model,
            ClipTokenizer().encode,
            model.tower.image_size,
            subject.test,
            batch_size=subject.settings.batch_size,
            device=subject.device,
            on_progress=report,
        )
    return Report(
        f"Zero-shot classification of {subject.test_data} by {subject.run.path}",
        [subject.row("zero_shot", "openai_templates", result, subject.test.fingerprint) for result in results],
        ["attribute", "accuracy", "2 s.e.", "chance", "images"],
        [(r.attribute, f"{r.accuracy:.3f}", f"{2 * r.stderr:.3f}", f"{r.chance:.3f}", r.num_samples) for r in results],
        subject.limit_note(subject.test),
    )


def _finetune(subject: TowerSubject) -> Report:
    budget = finetune.BUDGET.model_copy(update={"device": subject.settings.device})
    results = [
        finetune.finetune(
            tower,
            subject.train,
            subject.test,
            budget=budget,
            batch_size=subject.settings.batch_size,
            progress=subject.progress,
            description=f"finetune {variant}".strip(),
        )
        for variant, tower in subject.towers().items()
    ]
    pairs = [("", PairedResult(trained, random)) for trained, random in zip(*results, strict=True)]
    note = f"Both towers are trained whole, alike: {budget.epochs:g} epochs of batches of {budget.global_batch_size}."
    return subject.paired_report("Fine-tuning", "finetune", "finetune", pairs, [note])


def _caption(subject: TowerSubject) -> Report:
    train, test = subject.captions()
    budget = caption.BUDGET.model_copy(update={"device": subject.settings.device})
    outcomes = {
        variant: caption.caption(
            tower,
            train,
            test,
            budget=budget,
            batch_size=subject.settings.batch_size,
            records_path=None if variant else subject.run.samples_dir / "caption.jsonl",
            progress=subject.progress,
            description=f"caption {variant}".strip(),
        )
        for variant, tower in subject.towers().items()
    }
    rows, scores = [], []
    for variant, outcome in outcomes.items():
        scores.append([record.score for record in outcome.records])
        mean, stderr = mean_and_stderr(scores[-1])
        rows.append(
            ResultRow(
                benchmark="caption",
                family="all",
                metric="cider",
                value=mean,
                num_samples=len(scores[-1]),
                stderr=stderr,
                data_revision=f"{train.fingerprint}/{test.fingerprint}",
                scoring="official",
                limit=subject.settings.limit,
                variant=variant,
            )
        )
    gain, error = paired_difference(scores[0], scores[1])
    return Report(
        f"Captions of {subject.test_data} by a language model on {subject.run.path}, trained on {subject.train_data}",
        rows,
        ["metric", "tower", "random", "gain", "2 s.e.", "images"],
        [
            (
                "CIDEr-D",
                *(f"{SCALE * row.value:.3f}" for row in rows),
                f"{SCALE * gain:+.3f}",
                f"{2 * SCALE * error:.3f}",
                rows[0].num_samples,
            )
        ],
        [f"The captions are in {subject.run.samples_dir / 'caption.jsonl'}.", *subject.limit_note(train, test)],
    )


def _label_report(subject: TowerSubject) -> Report:
    """What the run reported of its own labels; with --train-data, the same of those captions."""
    report = _labels_of(subject) if subject.settings.train_data else read_label_report(subject.run.path)
    return Report(
        f"Labels of {subject.settings.train_data or 'the training data'} in {subject.run.path}",
        [],
        ["label", "value"],
        [
            *report.facts(),
            ("most frequent", _texts(report.frequent)),
            ("heaviest", _texts(report.weights_high)),
            ("lightest", _texts(report.weights_low)),
        ],
        [] if subject.settings.train_data else [f"The picture is {subject.run.path / PICTURE_FILE}."],
    )


def _labels_of(subject: TowerSubject) -> LabelReport:
    labels, tokenizer = subject.recipe.labels, load_label_tokenizer(subject.model_dir)
    weights = None
    if labels.idf != "none":
        frequency = TokenFrequency(tokenizer.vocab_size, labels.idf_formula)
        frequency.load_state_dict(load_file(subject.model_dir / "token_counts.safetensors"))
        weights = frequency.weights(torch.arange(tokenizer.vocab_size))
    return label_report(open_captions(subject.train_data), tokenizer, labels, weights)


def _texts(tokens: Sequence[TokenRow]) -> str:
    return ", ".join(token.text for token in tokens)


TASKS: dict[str, Callable[[TowerSubject], Report]] = {
    "linear_probe": _linear_probe,
    "linear_probe_mae": _linear_probe_mae,
    "few_shot": _few_shot,
    "knn": _knn,
    "zero_shot": _zero_shot,
    "finetune": _finetune,
    "caption": _caption,
    "label_report": _label_report,
}
"""What towers can be evaluated on, by name."""
