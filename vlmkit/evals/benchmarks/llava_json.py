"""Any file in LLaVA's JSON form as a benchmark: the human's question, the answer of the gpt turn as reference."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.data.samples import ConversationSample
from vlmkit.data.sources.opener import open_conversations
from vlmkit.evals.benchmarks.benchmark import Benchmark, Question
from vlmkit.evals.scoring import exact_match


def open_llava_json(spec: str) -> Benchmark:
    """The first question of every record of ``llava:FILE``, by ``question_type`` where the file has one."""
    return Benchmark(
        name="llava",
        samples=open_conversations(spec),
        questions=questions,
        rule=exact_match,
    )


def questions(sample: ConversationSample) -> Sequence[Question]:
    """The opening question: later turns of a dialogue lean on answers that the model has not given."""
    first = sample.turns[0]
    return [Question(sample.id, first.question, first.references, first.family or "all")]
