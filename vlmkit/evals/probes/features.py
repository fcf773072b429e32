"""Features of labelled images under frozen encoders: computed once, read by every probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from vlmkit.contracts import Batch
from vlmkit.data.images import EvalTransform, decode_image
from vlmkit.data.loader import eval_batches
from vlmkit.data.sources.opener import LabelledSource
from vlmkit.errors import UserError
from vlmkit.evals.bad_samples import check_readable
from vlmkit.evals.progress import OnProgress

Encoder = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [B, 3, S, S] on the device of the encoder -> features [B, D]."""


@dataclass(frozen=True)
class Readout:
    """One source under several encoders: features float32 [n, D] of each, and the class names of every image.

    Images that could not be decoded are not among the n.
    """

    features: list[np.ndarray]
    labels: list[dict[str, str]]

    def having(self, attribute: str) -> list[int]:
        """Rows of the images that have the attribute."""
        return [row for row, names in enumerate(self.labels) if attribute in names]


@dataclass(frozen=True)
class AttributeSplit:
    """One attribute under one encoder: what a probe learns from, and what it is scored on.

    Features are float32 [n, D] and [m, D], of the images that have the attribute. ``classes`` are the class names that
    occur in training, sorted; ``train_y`` [n] and ``test_y`` [m] are indices into them, -1 for a class that was not
    trained on, which no prediction can meet.
    """

    attribute: str
    classes: tuple[str, ...]
    train_x: np.ndarray = field(repr=False)
    train_y: np.ndarray = field(repr=False)
    test_x: np.ndarray = field(repr=False)
    test_y: np.ndarray = field(repr=False)
    chance: float
    """Share of the commonest class among the test images."""


@torch.inference_mode()
def read_out(
    encoders: Sequence[Encoder],
    image_size: int,
    source: LabelledSource,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> Readout:
    """The source under every encoder, each image decoded once (shorter side resized, centre cropped).

    Raises UserError where more than one image in a hundred is bad.
    """
    transform = EvalTransform(image_size)

    def load(index: int, epoch: int) -> tuple[torch.Tensor, dict[str, str]]:
        sample = source[index]
        names = {name: source.classes[name][label] for name, label in sample.labels.items()}
        return transform(decode_image(sample.image)), names

    features: list[list[np.ndarray]] = [[] for _ in encoders]
    labels: list[dict[str, str]] = []
    num_bad = 0
    for batch in eval_batches(load, len(source), batch_size, _collate):
        pixels = batch["pixel_values"].to(device)
        for encode, chunks in zip(encoders, features, strict=True):
            chunks.append(encode(pixels).float().cpu().numpy())
        labels += batch["labels"]
        num_bad += batch["num_bad"]
        if on_progress is not None:
            on_progress(len(labels) + num_bad, len(source))
    check_readable(num_bad, len(source))
    return Readout([np.concatenate(chunks) for chunks in features], labels)


def _collate(items: Sequence[tuple[torch.Tensor, dict[str, str]]]) -> Batch:
    pixels, labels = zip(*items, strict=True)
    return {"pixel_values": torch.stack(pixels), "labels": list(labels)}


def shared_attributes(train: LabelledSource, test: LabelledSource) -> list[str]:
    """Attributes that both sources label, in the order of the first. Raises UserError where there is none."""
    shared = [name for name in train.classes if name in test.classes]
    if not shared:
        raise UserError(
            f"The training and test sets share no attribute ({', '.join(train.classes)} against "
            f"{', '.join(test.classes)}); evaluate with two splits of the same labelled data."
        )
    return shared


def probe_splits(
    encoders: Sequence[Encoder],
    image_size: int,
    train: LabelledSource,
    test: LabelledSource,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> list[list[AttributeSplit]]:
    """For each encoder, the attributes that both sources share, in the order of ``train.classes``.

    Classes are matched between the sources by name. Raises UserError where too many images are bad, no attribute is
    shared, one has fewer than two classes to learn, or no test image has it.
    """
    attributes = shared_attributes(train, test)

    def read(source: LabelledSource, done_before: int) -> Readout:
        def report(done: int, _total: int) -> None:
            if on_progress is not None:
                on_progress(done_before + done, len(train) + len(test))

        return read_out(encoders, image_size, source, batch_size=batch_size, device=device, on_progress=report)

    read_train, read_test = read(train, 0), read(test, len(train))
    return [[_split(name, read_train, read_test, encoder) for name in attributes] for encoder in range(len(encoders))]


def _split(attribute: str, train: Readout, test: Readout, encoder: int) -> AttributeSplit:
    train_rows, test_rows = train.having(attribute), test.having(attribute)
    classes = sorted({train.labels[row][attribute] for row in train_rows})
    if len(classes) < 2:
        raise UserError(
            f"The attribute '{attribute}' has fewer than two classes in the training set; a probe needs two or more."
        )
    if not test_rows:
        raise UserError(f"No test image has the attribute '{attribute}'; give a larger test set.")
    index = {name: number for number, name in enumerate(classes)}
    names = [test.labels[row][attribute] for row in test_rows]
    return AttributeSplit(
        attribute,
        tuple(classes),
        _rows(train.features[encoder], train_rows),
        np.array([index[train.labels[row][attribute]] for row in train_rows]),
        _rows(test.features[encoder], test_rows),
        np.array([index.get(name, -1) for name in names]),
        commonest_share(names),
    )


def _rows(features: np.ndarray, rows: list[int]) -> np.ndarray:
    return features if len(rows) == len(features) else features[rows]


def commonest_share(names: Sequence[str]) -> float:
    """Accuracy of always saying the commonest of ``names``."""
    return Counter(names).most_common(1)[0][1] / len(names)
