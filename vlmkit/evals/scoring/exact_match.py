"""Exact match: the whole answer is right or it is wrong."""

from __future__ import annotations

from collections.abc import Sequence

from vlmkit.evals.statistics import mean_and_stderr


def normalise(answer: str) -> str:
    """Lower-case, without surrounding whitespace, inner whitespace collapsed to one space, without one final period."""
    return " ".join(answer.lower().split()).removesuffix(".").rstrip()


def score(prediction: str, references: Sequence[str]) -> float:
    """1.0 where the normalised prediction equals a normalised reference, else 0.0."""
    predicted = normalise(prediction)
    return float(any(predicted == normalise(reference) for reference in references))


def aggregate(scores: Sequence[float], span: float = 1.0) -> dict[str, float]:
    """``mean``, ``count`` and ``stderr`` (standard error of the mean) of the scores of one family.

    ``span`` is the width of the range that scores can lie in.
    """
    mean, stderr = mean_and_stderr(scores, span)
    return {"mean": mean, "count": len(scores), "stderr": stderr}
