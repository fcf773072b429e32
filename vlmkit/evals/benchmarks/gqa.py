"""GQA: compositional questions made from scene graphs, test-dev balanced (Hudson and Manning, arXiv 1902.09506)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text
from vlmkit.evals.benchmarks.prompts import short_answer
from vlmkit.evals.benchmarks.table import Join, Row, TableBenchmark
from vlmkit.evals.scoring import gqa


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row."""
    return [Question(identity, short_answer(text(row, "question")), (text(row, "answer"),), "gqa")]


GQA = TableBenchmark(
    name="gqa",
    hub_ids=("lmms-lab-encoder/GQA", "lmms-lab/GQA"),
    config="testdev_balanced_instructions",
    split="testdev",
    columns=("question", "imageId", "answer"),
    identity="id",
    join=Join("testdev_balanced_images", key="imageId", image_key="id"),
    questions=questions,
    rule=gqa,
)
