"""InfographicVQA: ANLS at threshold 0.5 against the annotators' answers (Mathew et al., arXiv 2104.12756)."""

from __future__ import annotations

from vlmkit.evals.scoring.anls import METRIC, VARIANTS, aggregate, read_answer, score

__all__ = ["METRIC", "VARIANTS", "aggregate", "read_answer", "score"]
