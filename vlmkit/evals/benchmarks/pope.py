"""POPE: is such an object in the image? Random, popular and adversarial absentees (Li et al., arXiv 2305.10355)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text
from vlmkit.evals.benchmarks.prompts import short_answer
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import pope


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row, in the category of its split; the ids of the data count anew in each."""
    prompt = short_answer(text(row, "question"))
    return [Question(identity, prompt, (text(row, "answer"),), "pope", category=text(row, "category"))]


POPE = TableBenchmark(
    name="pope",
    hub_ids=("lmms-lab-encoder/POPE", "lmms-lab/POPE"),
    split="test",
    columns=("question", "answer", "category"),
    questions=questions,
    rule=pope,
)
