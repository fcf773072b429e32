"""What every probe returns: scores by image, for one encoder and for two side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlmkit.evals.probes.features import AttributeSplit, Readout, commonest_share
from vlmkit.evals.statistics import mean_and_stderr

CEILING = 0.9
"""Accuracy of a random tower from which on an attribute tells nothing about pretraining."""
CEILING_NOTE = "ceiling"
"""What stands beside such an attribute."""


@dataclass(frozen=True)
class ProbeResult:
    """One attribute as one probe reads it.

    ``correct`` [runs, m] is 1.0 where a run (one, or one for each draw of training images) was right about a test
    image; ``chance`` is the share of the commonest class; ``detail`` says what the probe chose for itself.
    """

    attribute: str
    chance: float
    correct: np.ndarray = field(repr=False)
    detail: str = ""

    @classmethod
    def of(cls, split: AttributeSplit, predicted: np.ndarray, detail: str = "") -> ProbeResult:
        """The result of predicting classes ``predicted``, [m] or [runs, m], for the test images of ``split``."""
        correct = (np.atleast_2d(predicted) == split.test_y).astype(np.float64)
        return cls(split.attribute, split.chance, correct, detail)

    @classmethod
    def of_scores(cls, images: Readout, attribute: str, scores: np.ndarray, classes: Sequence[str]) -> ProbeResult:
        """The result of giving each image the class with the largest of its ``scores`` [n, C]; ``classes`` [C] name
        them. Images without the attribute are left out; at least one must have it."""
        rows = images.having(attribute)
        actual = [images.labels[row][attribute] for row in rows]
        predicted = [classes[number] for number in scores[rows].argmax(axis=1)]
        correct = np.array([[float(one == other) for one, other in zip(predicted, actual, strict=True)]])
        return cls(attribute, commonest_share(actual), correct)

    @property
    def num_samples(self) -> int:
        return self.correct.shape[1]

    @property
    def accuracy(self) -> float:
        """Over images and runs."""
        return float(self.correct.mean())

    @property
    def stderr(self) -> float:
        """Standard error of ``accuracy``: of the draw of test images and, with several runs, of the runs as well."""
        return _stderr(self.correct)

    @property
    def spread(self) -> float:
        """Standard deviation of the runs' accuracies; 0 for a single run."""
        return float(self.correct.mean(axis=1).std(ddof=1)) if len(self.correct) > 1 else 0.0


Probe = Callable[[AttributeSplit], ProbeResult]
"""Learns an attribute from its training part and is scored on its test part."""


@dataclass(frozen=True)
class PairedResult:
    """The same attribute in a trained tower and in a random one of the same shape, on the same images and runs.

    What a random tower already shows (colour, often) says nothing about pretraining.
    """

    trained: ProbeResult
    random: ProbeResult

    @property
    def difference(self) -> tuple[float, float]:
        """Accuracy gained over the random tower and the standard error of that gain, paired by image and run."""
        gain = self.trained.correct - self.random.correct
        return float(gain.mean()), _stderr(gain, span=2.0)

    @property
    def informative(self) -> bool:
        """False where the random tower is at the ceiling already."""
        return self.random.accuracy < CEILING

    @property
    def note(self) -> str:
        return self.trained.detail if self.informative else CEILING_NOTE


def _stderr(scores: np.ndarray, span: float = 1.0) -> float:
    """Of the mean over all of ``scores`` [runs, m], whose runs share their images and whose range is ``span`` wide."""
    _, of_images = mean_and_stderr(scores.mean(axis=0), span)
    return math.hypot(of_images, mean_and_stderr(scores.mean(axis=1))[1]) if len(scores) > 1 else of_images
