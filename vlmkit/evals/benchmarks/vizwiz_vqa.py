"""VizWiz-VQA: what blind people photographed and asked; the validation split (Gurari et al., arXiv 1802.08218)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import optional_text, text, texts
from vlmkit.evals.benchmarks.prompts import UNANSWERABLE, short_answer
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import vizwiz_vqa


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row, with leave to say that it cannot be answered; the category is its type of answer."""
    prompt = short_answer(f"{text(row, 'question')}\n{UNANSWERABLE}")
    return [Question(identity, prompt, texts(row, "answers"), "vizwiz_vqa", category=optional_text(row, "category"))]


VIZWIZ_VQA = TableBenchmark(
    name="vizwiz_vqa",
    hub_ids=("lmms-lab-encoder/VizWiz-VQA", "lmms-lab/VizWiz-VQA"),
    split="val",
    columns=("question", "answers"),
    optional=("category",),
    identity="question_id",
    questions=questions,
    rule=vizwiz_vqa,
)
