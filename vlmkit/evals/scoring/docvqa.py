"""DocVQA: ANLS at threshold 0.5 against the annotators' answers (Mathew et al., arXiv 2007.00398, section 5.1)."""

from __future__ import annotations

from vlmkit.evals.scoring.anls import METRIC, VARIANTS, aggregate, read_answer, score

__all__ = ["METRIC", "VARIANTS", "aggregate", "read_answer", "score"]
