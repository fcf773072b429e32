"""A few made-up rows of every published benchmark, in the columns, types and file layout of the data set on the hub."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

Rows = list[dict[str, Any]]


def png(shade: int) -> bytes:
    """A small image, as a file."""
    file = BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 255 - shade)).save(file, "PNG")
    return file.getvalue()


def _image(shade: int) -> dict[str, Any]:
    return {"bytes": png(shade), "path": None}


def _mmmu(identity: str, question: str, options: str, answer: str, kind: str, images: int) -> dict[str, Any]:
    cells = {f"image_{n}": _image(20 * n) if n <= images else None for n in range(1, 8)}
    row = {
        "id": identity,
        "question": question,
        "options": options,
        "explanation": "",
        **cells,
        "img_type": "['Plots']",
    }
    return {**row, "answer": answer, "topic_difficulty": "Easy", "question_type": kind, "subfield": "Costs"}


def _mme(number: str, question: str, answer: str, category: str) -> dict[str, Any]:
    row = {"question_id": number, "image": _image(40), "question": f"{question} Please answer yes or no."}
    return {**row, "answer": answer, "category": category}


def _seed(identity: str, kind: str, shades: Iterable[int], answer: str) -> dict[str, Any]:
    choices = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    row = {"answer": answer, **choices, "data_id": "1.jpg", "data_type": kind, "question": "How many are there?"}
    images = [_image(shade) for shade in shades]
    return {**row, "question_id": identity, "question_type_id": 5, "image": images, "segment": None}


def _votes(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(answers, 1)]


def _pope(number: int, thing: str, answer: str, split: str) -> dict[str, Any]:
    row = {"id": str(number), "question_id": "1", "question": f"Is there a {thing} in the image?", "answer": answer}
    return {**row, "image_source": "COCO_val2014_000000000001", "image": _image(number), "category": split}


TABLES: dict[str, dict[str, Rows]] = {
    "gqa": {
        "testdev_balanced_instructions/testdev-00000-of-00001": [
            {"id": "201", "imageId": "n2", "question": "Is it blue?", "answer": "yes", "fullAnswer": "Yes, it is."},
            {"id": "202", "imageId": "n1", "question": "What is it?", "answer": "box", "fullAnswer": "It is a box."},
        ],
        "testdev_balanced_images/testdev-00000-of-00001": [
            {"id": "n1", "image": _image(10)},
            {"id": "n2", "image": _image(200)},
        ],
    },
    "vqav2": {
        "data/validation-00000-of-00001": [
            {
                "question_type": "what is",
                "multiple_choice_answer": "cat",
                "answers": _votes(*["cat"] * 7, *["kitten"] * 3),
                "image_id": 7,
                "answer_type": "other",
                "question_id": 7000,
                "question": "What is this?",
                "image": _image(3),
            }
        ]
    },
    "vizwiz_vqa": {
        "data/val-00000-of-00001": [
            {
                "question_id": "VizWiz_val_00000000.jpg",
                "image": _image(4),
                "question": "Can you tell me what this is?",
                "answers": ["unanswerable"] * 6 + ["soup"] * 4,
                "category": "unanswerable",
            }
        ]
    },
    "textvqa": {
        "data/validation-00000-of-00001": [
            {
                "image_id": "003a",
                "question_id": 34602,
                "question": "what brand is it?",
                "question_tokens": ["what", "brand", "is", "it"],
                "image": _image(5),
                "image_width": 8,
                "image_height": 8,
                "flickr_original_url": "",
                "flickr_300k_url": "",
                "answers": ["dakota"] * 9 + ["none"],
                "image_classes": ["Camera"],
                "set_name": "val",
                "ocr_tokens": ["DAKOTA", "DIGITAL"],
            }
        ]
    },
    "scienceqa_img": {
        "ScienceQA-IMG/test-00000-of-00001": [
            {
                "image": _image(6),
                "question": "Which one is a solid?",
                "choices": ["water", "rock", "air"],
                "answer": 1,
                "hint": "Solids keep their shape.",
                "task": "closed choice",
                "grade": "grade3",
                "subject": "natural science",
                "topic": "physics",
                "category": "Materials",
                "skill": "Identify solids",
                "lecture": "",
                "solution": "",
            }
        ]
    },
    "pope": {
        "data/test-00000-of-00001": [
            _pope(0, "dog", "yes", "adversarial"),
            _pope(1, "car", "no", "popular"),
            _pope(2, "cup", "no", "random"),
        ]
    },
    "mme": {
        "data/test-00000-of-00001": [
            _mme("code_reasoning/0020.png", "Is it Python?", "Yes", "code_reasoning"),
            _mme("code_reasoning/0020.png", "Is it C?", "No", "code_reasoning"),
            _mme("count/01.jpg", "Are there two?", "Yes", "count"),
            _mme("count/01.jpg", "Are there three?", "No", "count"),
        ]
    },
    "mmbench_en_dev": {
        "en/dev-00000-of-00001": [
            {
                "index": 241,
                "question": "Which is it?",
                "hint": "It is round.",
                "answer": "B",
                "A": "a box",
                "B": "a ball",
                "C": "a road",
                "D": "nan",
                "category": "identity_reasoning",
                "image": _image(7),
                "source": "made",
                "L2-category": "attribute_reasoning",
                "comment": "nan",
                "split": "dev",
            }
        ]
    },
    "seedbench": {
        "data/test-00000-of-00001": [
            _seed("1", "image", [8], "A"),
            _seed("2", "video", [9, 10], "D"),
        ]
    },
    "mmmu": {
        "data/validation-00000-of-00001": [
            _mmmu("validation_Accounting_1", "<image 1> Cost?", "['$6', '<image 2>']", "B", "multiple-choice", 2),
            _mmmu("validation_Art_Theory_2", "Name the style. <image 1>", "[]", "['cubism', 'cubist']", "open", 1),
        ]
    },
    "ai2d": {
        "data/test-00000-of-00001": [
            {
                "question": "Which eats grass?",
                "options": ["fox", "hare", "owl"],
                "answer": "1",
                "image": _image(11),
            }
        ]
    },
    "mathvista": {
        "data/testmini-00000-of-00001": [
            {
                "pid": "1",
                "question": "What is the sum?",
                "image": "images/1.jpg",
                "decoded_image": _image(12),
                "choices": None,
                "unit": None,
                "precision": 1.0,
                "answer": "1.2",
                "question_type": "free_form",
                "answer_type": "float",
                "query": "Hint: Please answer with one decimal place.\nQuestion: What is the sum?",
            },
            {
                "pid": "2",
                "question": "Which is larger?",
                "image": "images/2.jpg",
                "decoded_image": _image(13),
                "choices": ["red", "blue"],
                "unit": None,
                "precision": None,
                "answer": "blue",
                "question_type": "multi_choice",
                "answer_type": "text",
                "query": "Hint: Give the option letter.\nQuestion: Which is larger?\nChoices:\n(A) red\n(B) blue",
            },
        ]
    },
    "chartqa": {
        "data/test-00000-of-00001": [
            {"type": "human_test", "question": "What is the maximum?", "answer": "14", "image": _image(14)},
            {"type": "augmented_test", "question": "Which year?", "answer": "2019", "image": _image(15)},
        ]
    },
    "docvqa": {
        "DocVQA/validation-00000-of-00001": [
            {
                "questionId": "49153",
                "question": "What is the date?",
                "question_types": ["figure/diagram"],
                "image": _image(16),
                "docId": 14465,
                "ucsf_document_id": "x",
                "ucsf_document_page_no": "4",
                "answers": ["1 May 1999", "1/5/99"],
                "data_split": "val",
            }
        ]
    },
    "infovqa": {
        "InfographicVQA/validation-00000-of-00001": [
            {
                "questionId": "98313",
                "question": "How many users?",
                "answers": ["1,200"],
                "answer_type": ["single span"],
                "image": _image(17),
                "image_url": "",
                "operation/reasoning": [""],
                "ocr": "",
                "data_split": "val",
            }
        ]
    },
    "ocrbench": {
        "data/test-00000-of-00001": [
            {
                "dataset": "IIIT5K",
                "question": "what is written in the image?",
                "question_type": "Regular Text Recognition",
                "answer": ["CENTRE"],
                "image": _image(18),
            }
        ]
    },
    "coco_captions": {
        "data/test-00000-of-00001": [
            {
                "filepath": "val2014",
                "sentids": [1, 2],
                "filename": f"COCO_val2014_{number:012d}.jpg",
                "imgid": number,
                "split": "test",
                "sentences": [f"a {thing} on a table", f"one {thing} inside"],
                "cocoid": number,
                "url": f"http://images.cocodataset.org/val2014/COCO_val2014_{number:012d}.jpg",
            }
            for number, thing in enumerate(["cat", "bowl"], 1)
        ]
    },
}
"""The rows of each benchmark by the file they are in."""


def write_fixture(name: str, directory: Path) -> Path:
    """Put the rows of a benchmark, as Parquet, and images that lie apart, into ``DIRECTORY/NAME``."""
    for file, rows in TABLES[name].items():
        path = directory / name / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_list(rows)
        for column in table.column_names:
            if isinstance(_first(rows, column), dict) and "bytes" in _first(rows, column):
                table = table.cast_column(column, datasets.Image())
            elif isinstance(rows[0][column], list) and isinstance(rows[0][column][0], dict) and column == "image":
                table = table.cast_column(column, datasets.List(datasets.Image()))
        table.to_parquet(str(path))
    if name == "coco_captions":
        (directory / name / "val2014").mkdir()
        for number in (1, 2):
            (directory / name / "val2014" / f"COCO_val2014_{number:012d}.jpg").write_bytes(png(number))
    return directory / name


def write_tsv(rows: Rows, path: Path) -> None:
    """The rows as texts separated by tabs, the images in base64."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0], delimiter="\t")
        table.writeheader()
        for row in rows:
            table.writerow({column: _in_base64(cell) for column, cell in row.items()})


def write_json(rows: Rows, path: Path) -> None:
    """The rows as a JSON list, the images as files beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [dict(row) for row in rows]
    for number, row in enumerate(listed):
        for column, cell in row.items():
            if isinstance(cell, dict):
                (path.parent / f"{number}.png").write_bytes(cell["bytes"])
                row[column] = f"{number}.png"
    path.write_text(json.dumps(listed), encoding="utf-8")


def _in_base64(cell: Any) -> Any:
    return base64.b64encode(cell["bytes"]).decode() if isinstance(cell, dict) else cell


def _first(rows: Rows, column: str) -> Any:
    return next((row[column] for row in rows if row[column] is not None), None)
