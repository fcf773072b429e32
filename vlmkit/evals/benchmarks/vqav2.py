"""VQAv2: open questions about COCO images, ten answers each; the validation split (Goyal et al., arXiv 1612.00837)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmkit.data.samples import BadSample
from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import optional_text, text
from vlmkit.evals.benchmarks.prompts import short_answer
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import vqav2


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row, in the category of its type of answer (yes/no, number, other)."""
    prompt = short_answer(text(row, "question"))
    return [Question(identity, prompt, _answers(row["answers"]), "vqav2", category=optional_text(row, "answer_type"))]


def _answers(cell: Any) -> tuple[str, ...]:
    """The texts of a list of answers, or of a list for each field of them, as old versions of ``datasets`` give it."""
    if isinstance(cell, dict):
        listed = cell.get("answer")
    else:
        listed = [one.get("answer") if isinstance(one, dict) else one for one in cell or []]
    if not listed or not all(isinstance(one, str) for one in listed):
        raise BadSample(f"the cell answers is not a list of answers: {cell!r}")
    return tuple(listed)


VQAV2 = TableBenchmark(
    name="vqav2",
    hub_ids=("lmms-lab-encoder/VQAv2", "lmms-lab/VQAv2"),
    split="validation",
    columns=("question", "question_id", "answers"),
    optional=("answer_type",),
    identity="question_id",
    questions=questions,
    rule=vqav2,
)
