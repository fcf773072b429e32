"""DocVQA: questions about scanned documents; the validation split (Mathew et al., arXiv 2007.00398)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text, texts
from vlmkit.evals.benchmarks.prompts import short_answer
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import docvqa


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row."""
    return [Question(identity, short_answer(text(row, "question")), texts(row, "answers"), "docvqa")]


DOCVQA = TableBenchmark(
    name="docvqa",
    hub_ids=("lmms-lab-encoder/DocVQA", "lmms-lab/DocVQA"),
    config="DocVQA",
    split="validation",
    columns=("question", "answers"),
    identity="questionId",
    questions=questions,
    rule=docvqa,
)
