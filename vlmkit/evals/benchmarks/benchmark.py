"""The shape that all benchmarks share: where the samples come from, what is asked, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlmkit.contracts import Source
from vlmkit.data.samples import ConversationSample


@dataclass(frozen=True)
class Question:
    """One question about the images of one sample.

    ``references`` are the answers that count as right; ``family`` is the group it is reported in.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    family: str


@dataclass(frozen=True)
class Benchmark:
    """A set of samples with the questions asked about each and the rule that scores the answers.

    ``score(prediction, references)`` is in 0..1; ``aggregate(scores)`` gives at least ``mean``, ``count`` and
    ``stderr`` of one family. ``scoring`` names the rule in result rows:
    rows scored by different rules are not compared.
    """

    name: str
    samples: Source[ConversationSample]
    questions: Callable[[ConversationSample], Sequence[Question]]
    metric: str
    scoring: str
    score: Callable[[str, Sequence[str]], float]
    aggregate: Callable[[Sequence[float]], Mapping[str, float]]
