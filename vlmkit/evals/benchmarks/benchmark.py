"""The shape that all benchmarks share: where the samples come from, what is asked, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from vlmkit.contracts import Source
from vlmkit.data.samples import ConversationSample
from vlmkit.evals.scoring.case import Case, Scoring, ScoringRule


@dataclass(frozen=True)
class Question:
    """One question about the images of one sample.

    ``references`` are the answers that count as right; ``family`` is the group it is reported in. ``choices``,
    ``category`` and ``question_id`` are for rules that read them (``scoring.case.Case``).
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    family: str
    choices: tuple[str, ...] = ()
    category: str = ""
    question_id: str = ""

    def case(self, prediction: str, error: str = "") -> Case:
        """The question, answered (or with why it was not), as scoring rules take it."""
        return {
            "prediction": prediction,
            "references": self.references,
            "choices": self.choices,
            "category": self.category,
            "question_id": self.question_id,
            "error": error,
        }


SampleT = TypeVar("SampleT", bound=ConversationSample)


@dataclass(frozen=True)
class Benchmark(Generic[SampleT]):
    """A set of samples with the questions asked about each and the rule that scores the answers.

    ``scoring`` is the variant of the rule: rows scored by different ones are not compared. ``max_new_tokens`` is the
    room for an answer (None: that of short ones, as the answerer has it).
    """

    name: str
    samples: Source[SampleT]
    questions: Callable[[SampleT], Sequence[Question]]
    rule: ScoringRule
    scoring: Scoring = "official"
    max_new_tokens: int | None = None
