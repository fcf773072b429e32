"""MMBench, the English dev split: a question is asked once for every rotation of its options (Liu et al., arXiv
2307.06281), which VLMEvalKit calls circular evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.data.samples import BadSample
from vlmkit.evals.benchmarks.benchmark import Question
from vlmkit.evals.benchmarks.cells import optional_text, text
from vlmkit.evals.benchmarks.prompts import multiple_choice
from vlmkit.evals.benchmarks.table import Row, TableBenchmark
from vlmkit.evals.scoring import mmbench_en_dev

_LETTERS = "ABCD"


def questions(identity: str, row: Row) -> Sequence[Question]:
    """The question of a row, its hint before it, as often as it has options, which move on by one place each time."""
    hint, question = optional_text(row, "hint"), text(row, "question")
    choices = [choice for letter in _LETTERS if (choice := optional_text(row, letter))]
    right = _LETTERS[: len(choices)].find(text(row, "answer"))
    if right < 0:
        raise BadSample(f"the answer {row['answer']!r} is none of {len(choices)} options")
    asked = f"{hint}\n{question}" if hint else question
    return [
        Question(
            f"{identity}/{turn}",
            multiple_choice(asked, rotated := (*choices[turn:], *choices[:turn])),
            (_LETTERS[(right - turn) % len(choices)],),
            "mmbench_en_dev",
            rotated,
            optional_text(row, "category"),
            text(row, "index"),
        )
        for turn in range(len(choices))
    ]


MMBENCH_EN_DEV = TableBenchmark(
    name="mmbench_en_dev",
    hub_ids=("lmms-lab-encoder/MMBench", "lmms-lab/MMBench"),
    config="en",
    split="dev",
    columns=("index", "question", "hint", "A", "B", "C", "D", "answer", "category"),
    identity="index",
    questions=questions,
    rule=mmbench_en_dev,
)
