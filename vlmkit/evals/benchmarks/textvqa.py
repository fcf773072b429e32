"""TextVQA: questions about text in images; the validation split (Singh et al., arXiv 1904.08920).

LLaVA-1.5 puts the words that an OCR system has found into the prompt, lmms-eval does not; both are asked and reported,
the latter as ``textvqa``, the former as ``textvqa_ocr_words``.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text, texts
from vlmkit.evals.benchmarks.prompts import short_answer
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import textvqa


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row as it stands, and with the OCR words below it (LLaVA ``docs/Evaluation.md``)."""
    question, answers = text(row, "question"), texts(row, "answers")
    words = ", ".join(texts(row, "ocr_tokens")) if row["ocr_tokens"] else ""
    with_words = f"{question}\nReference OCR token: {words}"
    return [
        Question(identity, short_answer(question), answers, "textvqa"),
        Question(f"{identity}/ocr_words", short_answer(with_words), answers, "textvqa_ocr_words"),
    ]


TEXTVQA = TableBenchmark(
    name="textvqa",
    hub_ids=("lmms-lab-encoder/textvqa", "lmms-lab/textvqa"),
    split="validation",
    columns=("question", "answers", "ocr_tokens"),
    identity="question_id",
    questions=questions,
    rule=textvqa,
)
