"""What the tasks of one tower's evaluation share: the tower, a random one beside it, sources, features, rows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from typing import Any, Generic, TypeVar

from vlmkit.config import PretrainRecipe
from vlmkit.contracts import Source
from vlmkit.data.samples import CaptionSample, LabelledSample
from vlmkit.data.sources.opener import LabelledSource, open_captions, open_labelled
from vlmkit.evals.probes.features import AttributeSplit, probe_splits
from vlmkit.evals.probes.result import CEILING, CEILING_NOTE, PairedResult, ProbeResult
from vlmkit.evals.progress import shown
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower, build_tower
from vlmkit.pipelines.evaluation.reports import EvalSettings, Report
from vlmkit.runs import ResultRow, RunDirectory, open_model
from vlmkit.training import distributed
from vlmkit.training.metrics import Progress

TRAIN_DATA, TEST_DATA = "miniworld:train?scenes=5000", "miniworld:test?scenes=8000"
RANDOM_TOWER = "random tower"
"""The ``variant`` of the rows of an untrained tower of the same shape, beside the run's own."""

_CEILING = f"{CEILING_NOTE}: a random tower is right in {CEILING:.0%} or more; this tells nothing about pretraining."

SampleT = TypeVar("SampleT")


class TowerSubject:
    """A finished tower run under evaluation. Sources and features are opened and computed at first use, once."""

    def __init__(
        self, run: RunDirectory, recipe: PretrainRecipe, settings: EvalSettings, progress: Progress | None
    ) -> None:
        self.model_dir = open_model(run.path, "pretrain-superclass")
        self.run, self.recipe, self.settings, self.progress = run, recipe, settings, progress
        self.device = distributed.setup(settings.device).device
        self.train_data = settings.train_data or TRAIN_DATA
        self.test_data = settings.test_data or TEST_DATA

    def towers(self) -> dict[str, VisionTower]:
        """The run's tower ("") and a random one of its shape, by the variant of their rows, on the device.

        The random one is drawn from the run's seed: over the seeds of a study, random towers vary as well.
        """
        tower = build_tower(self.model_dir)
        with seeded(self.recipe.seed):
            random_tower = VisionTower(tower.config)
        return {"": tower.to(self.device).eval(), RANDOM_TOWER: random_tower.to(self.device).eval()}

    def limit_note(self, *sources: Source[Any]) -> list[str]:
        """A sentence for a report on ``sources``, if the limit left out a part of any."""
        cut = any(isinstance(source, _Evenly) for source in sources)
        return [f"At most {self.settings.limit} images of each set, evenly spread (the limit)."] if cut else []

    @cached_property
    def train(self) -> LabelledSource:
        return _limited_labels(open_labelled(self.train_data), self.settings.limit)

    @cached_property
    def test(self) -> LabelledSource:
        return _limited_labels(open_labelled(self.test_data), self.settings.limit)

    def captions(self) -> tuple[Source[CaptionSample], Source[CaptionSample]]:
        """Training and test source, read as images with captions."""
        train, test = (open_captions(spec) for spec in (self.train_data, self.test_data))
        return _limited(train, self.settings.limit), _limited(test, self.settings.limit)

    @cached_property
    def splits(self) -> list[tuple[AttributeSplit, AttributeSplit]]:
        """Each attribute under the run's tower and under the random one."""
        towers = list(self.towers().values())
        with shown(self.progress, len(self.train) + len(self.test), "features") as report:
            trained, random = probe_splits(
                [tower.pooled for tower in towers],
                towers[0].image_size,
                self.train,
                self.test,
                batch_size=self.settings.batch_size,
                device=self.device,
                on_progress=report,
            )
        return list(zip(trained, random, strict=True))

    def row(self, task: str, scoring: str, result: ProbeResult, data_revision: str, variant: str = "") -> ResultRow:
        """The result row of one attribute."""
        return ResultRow(
            benchmark=task,
            family=result.attribute,
            metric="accuracy",
            value=result.accuracy,
            num_samples=result.num_samples,
            stderr=result.stderr,
            data_revision=data_revision,
            scoring=scoring,
            limit=self.settings.limit,
            variant=variant,
        )

    def paired_report(
        self, title: str, task: str, scoring: str, pairs: Iterable[tuple[str, PairedResult]], notes: list[str]
    ) -> Report:
        """Rows and table of pairs, each with its setting of the task ("" where it has one setting only)."""
        pairs = list(pairs)
        rows, table = [], []
        revision = f"{self.train.fingerprint}/{self.test.fingerprint}"
        for setting, pair in pairs:
            beside = f"{setting}, {RANDOM_TOWER}" if setting else RANDOM_TOWER
            rows.append(self.row(task, scoring, pair.trained, revision, setting))
            rows.append(self.row(task, scoring, pair.random, revision, beside))
            table.append(_line(setting, pair))
        ceiling = [] if all(pair.informative for _, pair in pairs) else [_CEILING]
        return Report(
            f"{title} of {self.run.path} (trained on {self.train_data}, scored on {self.test_data})",
            rows,
            ["attribute", "tower", "random", "gain", "2 s.e.", "chance", "images", ""],
            table,
            [*notes, *ceiling, *self.limit_note(self.train, self.test)],
        )


def _line(setting: str, pair: PairedResult) -> tuple[Any, ...]:
    gain, stderr = pair.difference
    attribute = pair.trained.attribute
    return (
        f"{attribute}, {setting}" if setting else attribute,
        _accuracy(pair.trained),
        f"{pair.random.accuracy:.3f}",
        f"{gain:+.3f}",
        f"{2 * stderr:.3f}",
        f"{pair.trained.chance:.3f}",
        pair.trained.num_samples,
        pair.note,
    )


def _accuracy(result: ProbeResult) -> str:
    return f"{result.accuracy:.3f}" + (f" ± {result.spread:.3f}" if len(result.correct) > 1 else "")


class _Evenly(Generic[SampleT]):
    """``count`` samples of a source, spread evenly over it (folders list their classes one after another)."""

    def __init__(self, source: Source[SampleT], count: int) -> None:
        self._source, self._count = source, count
        self.fingerprint = sha256(f"{count} of {source.fingerprint}".encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> SampleT:
        return self._source[index * len(self._source) // self._count]


class _EvenlyLabelled(_Evenly[LabelledSample]):
    def __init__(self, source: LabelledSource, count: int) -> None:
        super().__init__(source, count)
        self.classes = source.classes


def _limited(source: Source[SampleT], limit: int | None) -> Source[SampleT]:
    return source if limit is None or limit >= len(source) else _Evenly(source, limit)


def _limited_labels(source: LabelledSource, limit: int | None) -> LabelledSource:
    return source if limit is None or limit >= len(source) else _EvenlyLabelled(source, limit)
