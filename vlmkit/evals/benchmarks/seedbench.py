"""SEED-Bench: choices about images and videos, of which frames are shown (Li et al., arXiv 2307.16125)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text
from vlmkit.evals.benchmarks.prompts import multiple_choice
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import seedbench

_CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row, in the category of its kind of data (image, video)."""
    choices = tuple(text(row, column) for column in _CHOICES)
    prompt = multiple_choice(text(row, "question"), choices)
    return [Question(identity, prompt, (text(row, "answer"),), "seedbench", choices, text(row, "data_type"))]


SEEDBENCH = TableBenchmark(
    name="seedbench",
    hub_ids=("lmms-lab-encoder/SEED-Bench", "lmms-lab/SEED-Bench"),
    split="test",
    columns=("question", *_CHOICES, "answer", "data_type"),
    identity="question_id",
    questions=questions,
    rule=seedbench,
)
