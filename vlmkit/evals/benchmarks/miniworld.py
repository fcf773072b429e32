"""Questions about unseen scenes of the embedded world, in its four families."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.data.samples import ConversationSample
from vlmkit.data.sources.opener import open_conversations
from vlmkit.evals.benchmarks.benchmark import Benchmark, Question
from vlmkit.evals.scoring import exact_match

DEFAULT_SPEC = "miniworld:test?scenes=500"


def open_miniworld(spec: str = DEFAULT_SPEC) -> Benchmark:
    """Every question of every scene, asked as it stands; the whole answer counts."""
    return Benchmark(
        name="miniworld",
        samples=open_conversations(spec),
        questions=questions,
        rule=exact_match,
    )


def questions(sample: ConversationSample) -> Sequence[Question]:
    """The turns of a scene, each a question of its own, in the family that the world gives it."""
    return [
        Question(f"{sample.id}/{number}", turn.question, turn.references, turn.family)
        for number, turn in enumerate(sample.turns)
    ]
