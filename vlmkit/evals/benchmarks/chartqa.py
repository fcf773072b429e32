"""ChartQA: questions about charts, written by people or made by a model; the test split (Masry et al., arXiv
2203.10244)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text
from vlmkit.evals.benchmarks.prompts import SINGLE_WORD
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import chartqa


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row; the category is human or augmented."""
    prompt = f"{text(row, 'question')}\n{SINGLE_WORD}"
    category = text(row, "type").removesuffix("_test")
    return [Question(identity, prompt, (text(row, "answer"),), "chartqa", category=category)]


CHARTQA = TableBenchmark(
    name="chartqa",
    hub_ids=("lmms-lab-encoder/ChartQA", "lmms-lab/ChartQA"),
    split="test",
    columns=("question", "answer", "type"),
    questions=questions,
    rule=chartqa,
)
