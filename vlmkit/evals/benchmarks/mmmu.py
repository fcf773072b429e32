"""MMMU: college exams in 30 subjects, images among the text; the validation split (Yue et al., arXiv 2311.16502)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import text, texts
from vlmkit.evals.benchmarks.prompts import lettered, multiple_choice, short_answer
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import mmmu

_IMAGES = tuple(f"image_{number}" for number in range(1, 8))
_PLACE = re.compile(r"<image (\d)>")
_SUBJECT = re.compile(r"^[^_]+_(.+)_\d+$")


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row, with a place for each image where the text has one; the category is the subject."""
    choices = _choices(row)
    question = text(row, "question")
    prompt = multiple_choice(question, choices) if choices else short_answer(question)
    references = (text(row, "answer"),) if choices else texts(row, "answer")
    subject = match[1] if (match := _SUBJECT.match(text(row, "id"))) else ""
    return [Question(identity, _PLACE.sub(IMAGE_TOKEN, prompt), references, "mmmu", choices, subject)]


def images(row: Row, images: Row) -> Sequence[Any]:
    """An image for each place, in the order of question and options; all images of a text without places."""
    places = _PLACE.findall("\n".join([text(row, "question"), *lettered(_choices(row))]))
    return [images[f"image_{number}"] for number in places] or list(images.values())


def _choices(row: Row) -> tuple[str, ...]:
    return texts(row, "options") if text(row, "question_type") == "multiple-choice" else ()


MMMU = TableBenchmark(
    name="mmmu",
    hub_ids=("lmms-lab-encoder/MMMU", "lmms-lab/MMMU", "MMMU/MMMU"),
    split="validation",
    columns=("id", "question", "options", "answer", "question_type"),
    image_columns=_IMAGES,
    identity="id",
    images=images,
    questions=questions,
    rule=mmmu,
    max_new_tokens=128,
)
