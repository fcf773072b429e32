"""ScienceQA, the questions with an image: school science; the test split (Lu et al., arXiv 2209.09513)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import option, optional_text, text, texts
from vlmkit.evals.benchmarks.prompts import multiple_choice
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import scienceqa_img


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row, its hint before it as context."""
    question, choices, hint = text(row, "question"), texts(row, "choices"), optional_text(row, "hint")
    prompt = multiple_choice(f"Context: {hint}\n{question}" if hint else question, choices)
    return [Question(identity, prompt, (option(row, "answer", choices),), "scienceqa_img", choices)]


SCIENCEQA_IMG = TableBenchmark(
    name="scienceqa_img",
    hub_ids=("lmms-lab-encoder/ScienceQA", "lmms-lab/ScienceQA"),
    config="ScienceQA-IMG",
    split="test",
    columns=("hint", "question", "choices", "answer"),
    questions=questions,
    rule=scienceqa_img,
)
