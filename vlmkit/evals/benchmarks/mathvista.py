"""MathVista: mathematics in pictures; the testmini split (Lu et al., arXiv 2310.02255).

The task's own queries say in which form to answer. Answers are read by rule alone: scores are lower than where a
language model extracts them.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text, texts
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import mathvista


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The query of a row; its choices, if it has any, are part of it."""
    choices = texts(row, "choices") if row["choices"] else ()
    return [Question(identity, text(row, "query"), (text(row, "answer"),), "mathvista", choices)]


MATHVISTA = TableBenchmark(
    name="mathvista",
    hub_ids=("AI4Math/MathVista",),
    split="testmini",
    columns=("query", "choices", "answer"),
    image_columns=("decoded_image",),
    identity="pid",
    questions=questions,
    rule=mathvista,
    max_new_tokens=256,
)
