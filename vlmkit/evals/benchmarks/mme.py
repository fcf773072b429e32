"""MME: two questions about each image, one answered yes and one no, in 14 subtasks (Fu et al., arXiv 2306.13394)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text
from vlmkit.evals.benchmarks.prompts import short_answer
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import mme

_INSTRUCTION = " Please answer yes or no."
"""Ends the questions as published; LLaVA and lmms-eval put the short-answer line in its place."""


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row; its pair has the same ``question_id``, the image's."""
    prompt = short_answer(text(row, "question").removesuffix(_INSTRUCTION))
    answer = (text(row, "answer"),)
    return [
        Question(identity, prompt, answer, "mme", category=text(row, "category"), question_id=text(row, "question_id"))
    ]


MME = TableBenchmark(
    name="mme",
    hub_ids=("lmms-lab-encoder/MME", "lmms-lab/MME"),
    split="test",
    columns=("question", "answer", "category", "question_id"),
    questions=questions,
    rule=mme,
)
