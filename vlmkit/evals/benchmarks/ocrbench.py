"""OCRBench: a thousand questions on text in images, from many data sets (Liu et al., arXiv 2305.07895)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text, texts
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import ocrbench


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row as it stands; the category is its type."""
    return [
        Question(identity, text(row, "question"), texts(row, "answer"), "ocrbench", category=text(row, "question_type"))
    ]


OCRBENCH = TableBenchmark(
    name="ocrbench",
    hub_ids=("echo840/OCRBench",),
    split="test",
    columns=("question", "answer", "dataset", "question_type"),
    questions=questions,
    rule=ocrbench,
    max_new_tokens=128,
)
