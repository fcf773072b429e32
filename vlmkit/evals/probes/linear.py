"""How much of an image a frozen tower makes linearly readable: logistic regression on its mean-pooled features.

The quick probe of a backbone: features are computed once, then every attribute of the labelled set gets its own
multinomial classifier. Read beside the same probe of a random tower of the same shape, since what a random tower
already shows (colour, often) says nothing about pretraining.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from vlmkit.contracts import Batch
from vlmkit.data.images import EvalTransform, decode_image
from vlmkit.data.loader import eval_batches
from vlmkit.data.sources import LabelledSource
from vlmkit.errors import UserError
from vlmkit.evals.bad_samples import check_readable
from vlmkit.evals.statistics import mean_and_stderr, paired_difference

if TYPE_CHECKING:
    from vlmkit.models.vision_tower import VisionTower

INVERSE_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)
"""Values of C tried for every attribute, from the strongest L2 penalty to the weakest."""
HELD_OUT_FRACTION = 0.2
"""Share of the training samples on which C is chosen; the classifier is then fitted to all of them."""
CEILING = 0.9
"""Accuracy of a random tower from which on an attribute tells nothing about pretraining."""

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True)
class ProbeResult:
    """One attribute read by one linear classifier.

    ``accuracy`` over the ``num_samples`` test images that have the attribute, with its standard error; ``chance`` is
    the share of the commonest class among them; ``correct`` [num_samples] is 1.0 where the classifier was right.
    """

    attribute: str
    accuracy: float
    stderr: float
    num_samples: int
    chance: float
    correct: np.ndarray = field(repr=False, compare=False)


@dataclass(frozen=True)
class PairedProbe:
    """The same attribute probed in a trained tower and in a random one of the same shape, on the same images."""

    trained: ProbeResult
    random: ProbeResult

    @property
    def attribute(self) -> str:
        return self.trained.attribute

    @property
    def difference(self) -> tuple[float, float]:
        """Accuracy gained over the random tower and the standard error of that gain, paired by image."""
        return paired_difference(self.trained.correct, self.random.correct)

    @property
    def informative(self) -> bool:
        """False where the random tower is at the ceiling already."""
        return self.random.accuracy < CEILING

    @property
    def note(self) -> str:
        return "" if self.informative else "ceiling: uninformative"


@dataclass(frozen=True)
class _Readout:
    """Features of one source under several towers, and the class name of every attribute of each image."""

    features: list[np.ndarray]
    labels: list[dict[str, str]]

    def with_attribute(self, attribute: str, tower: int) -> tuple[np.ndarray, np.ndarray]:
        """Features [n, D] and class names [n] of the images that have the attribute."""
        rows = [row for row, names in enumerate(self.labels) if attribute in names]
        return self.features[tower][rows], np.array([self.labels[row][attribute] for row in rows])


def linear_probe(
    tower: VisionTower,
    train: LabelledSource,
    test: LabelledSource,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> list[ProbeResult]:
    """Accuracy of logistic regression on ``tower.pooled``: one result an attribute, in the order of ``train.classes``.

    Images that do not decode are left out. Classes are matched between the two sources by name; a class that was not
    trained on counts as wrong. The result depends on the data and the weights only (no random draw is left open).
    Raises UserError where more than one image in a hundred is bad, where no attribute is shared, or one has fewer than
    two classes to learn.
    """
    return _probe([tower], train, test, batch_size, device, on_progress)[0]


def probe_pair(
    tower: VisionTower,
    random_tower: VisionTower,
    train: LabelledSource,
    test: LabelledSource,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> list[PairedProbe]:
    """`linear_probe` of a tower and of a random one of the same shape, each image decoded once for both."""
    trained, random = _probe([tower, random_tower], train, test, batch_size, device, on_progress)
    return [PairedProbe(*pair) for pair in zip(trained, random, strict=True)]


def _probe(
    towers: Sequence[VisionTower],
    train: LabelledSource,
    test: LabelledSource,
    batch_size: int,
    device: torch.device | str,
    on_progress: Progress | None,
) -> list[list[ProbeResult]]:
    attributes = [name for name in train.classes if name in test.classes]
    if not attributes:
        raise UserError(
            f"The training and test sets share no attribute ({', '.join(train.classes)} against "
            f"{', '.join(test.classes)}); probe with two splits of the same labelled data."
        )
    total = len(train) + len(test)
    report = on_progress or (lambda done, total: None)
    train_set = _read_out(towers, train, batch_size, device, lambda done: report(done, total))
    test_set = _read_out(towers, test, batch_size, device, lambda done: report(len(train) + done, total))
    return [
        [
            _fit_and_score(name, *train_set.with_attribute(name, i), *test_set.with_attribute(name, i))
            for name in attributes
        ]
        for i in range(len(towers))
    ]


@torch.inference_mode()
def _read_out(
    towers: Sequence[VisionTower],
    source: LabelledSource,
    batch_size: int,
    device: torch.device | str,
    on_progress: Callable[[int], None],
) -> _Readout:
    for tower in towers:
        tower.to(device).eval()
    transform = EvalTransform(towers[0].image_size)

    def load(index: int, epoch: int) -> tuple[torch.Tensor, dict[str, str]]:
        sample = source[index]
        names = {name: source.classes[name][label] for name, label in sample.labels.items()}
        return transform(decode_image(sample.image)), names

    features: list[list[np.ndarray]] = [[] for _ in towers]
    labels: list[dict[str, str]] = []
    num_bad = 0
    for batch in eval_batches(load, len(source), batch_size, _collate):
        pixels = batch["pixel_values"].to(device)
        for tower, chunks in zip(towers, features, strict=True):
            chunks.append(tower.pooled(pixels).double().cpu().numpy())
        labels += batch["labels"]
        num_bad += batch["num_bad"]
        on_progress(len(labels) + num_bad)
    check_readable(num_bad, len(source))
    return _Readout([np.concatenate(chunks) for chunks in features], labels)


def _collate(items: Sequence[tuple[torch.Tensor, dict[str, str]]]) -> Batch:
    pixels, labels = zip(*items, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": list(labels)}


def _fit_and_score(
    attribute: str, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray
) -> ProbeResult:
    if len(test_y) == 0:
        raise UserError(f"No test image has the attribute '{attribute}'; give a larger test set.")
    # The products are too small to share: on busy cores, BLAS threads waiting for each other made this 50 times slower.
    with threadpool_limits(1, user_api="blas"):
        predicted = _choose_classifier(attribute, train_x, train_y).predict(test_x)
    correct = (predicted == test_y).astype(np.float64)
    accuracy, stderr = mean_and_stderr(correct)
    chance = Counter(test_y.tolist()).most_common(1)[0][1] / len(test_y)
    return ProbeResult(attribute, accuracy, stderr, len(test_y), chance, correct)


def _choose_classifier(attribute: str, x: np.ndarray, y: np.ndarray) -> Pipeline:
    """The classifier with the penalty that does best on a held-out part, the stronger one on a tie, fitted to all."""
    order = np.random.default_rng(0).permutation(len(y))
    held_out, kept = np.split(order, [max(1, int(HELD_OUT_FRACTION * len(y)))])
    if len(set(y[kept])) < 2:
        raise UserError(
            f"The attribute '{attribute}' has fewer than two classes in the training set; a probe needs two or more."
        )
    accuracies = [_classifier(c).fit(x[kept], y[kept]).score(x[held_out], y[held_out]) for c in INVERSE_PENALTIES]
    return _classifier(INVERSE_PENALTIES[int(np.argmax(accuracies))]).fit(x, y)


def _classifier(c: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-3, max_iter=5000))
