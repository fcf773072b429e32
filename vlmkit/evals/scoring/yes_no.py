"""The right answer of a question that asks for yes or no."""

from __future__ import annotations

from vlmkit.errors import UserError
from vlmkit.evals.scoring.case import Case


def right_answer(case: Case) -> str:
    """``yes`` or ``no``, from a reference in any case. Raises UserError where the reference is something else."""
    answer = case["references"][0].strip().lower()
    if answer not in ("yes", "no"):
        raise UserError(f"the reference {case['references'][0]!r} is neither yes nor no: correct the case")
    return answer
