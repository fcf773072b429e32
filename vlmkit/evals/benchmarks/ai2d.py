"""AI2D: diagrams from school books; the test split (Kembhavi et al., arXiv 1603.07396)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import option, text, texts
from vlmkit.evals.benchmarks.prompts import multiple_choice
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import ai2d


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row, its options as they stand."""
    choices = texts(row, "options")
    prompt = multiple_choice(text(row, "question"), choices)
    return [Question(identity, prompt, (option(row, "answer", choices),), "ai2d", choices)]


AI2D = TableBenchmark(
    name="ai2d",
    hub_ids=("lmms-lab-encoder/ai2d", "lmms-lab/ai2d"),
    split="test",
    columns=("question", "options", "answer"),
    questions=questions,
    rule=ai2d,
)
