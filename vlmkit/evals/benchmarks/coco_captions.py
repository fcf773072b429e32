"""COCO captions, Karpathy's test split: five captions an image, scored by CIDEr (Chen et al., arXiv 1504.00325;
Karpathy and Fei-Fei, arXiv 1412.2306).

The data set has captions and addresses; the images lie beside it as in COCO's own archives, ``val2014/COCO_val2014_*``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text, texts
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import coco_captions

PROMPT = "Provide a one-sentence caption for the provided image."
"""lmms-eval's."""


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The one request about an image; all its captions are references."""
    return [Question(identity, PROMPT, texts(row, "sentences"), "coco_captions")]


def images(row: Row, _: Row) -> Sequence[Any]:
    """The path of the image."""
    return [_path(row)]


def image_url(row: Row) -> tuple[str, str]:
    """Path and address of the image."""
    return _path(row), text(row, "url")


def _path(row: Row) -> str:
    return f"{text(row, 'filepath')}/{text(row, 'filename')}"


COCO_CAPTIONS = TableBenchmark(
    name="coco_captions",
    hub_ids=("yerevann/coco-karpathy",),
    split="test",
    columns=("sentences", "url", "filepath", "filename"),
    image_columns=(),
    identity="cocoid",
    images=images,
    image_url=image_url,
    questions=questions,
    rule=coco_captions,
    max_new_tokens=64,
)
