"""How much of an evaluation set may be unreadable before its scores mean nothing."""

from __future__ import annotations

from vlmkit.config import DataConfig
from vlmkit.errors import UserError

MAX_BAD_FRACTION = DataConfig().max_bad_fraction
"""The share that training allows by default."""


def check_readable(num_bad: int, num_samples: int) -> None:
    """Raise UserError if more than ``MAX_BAD_FRACTION`` of the samples, and more than one, could not be read."""
    if num_bad > max(1, MAX_BAD_FRACTION * num_samples):
        raise UserError(
            f"{num_bad} of {num_samples} samples cannot be read, more than {MAX_BAD_FRACTION:.0%}, so a score over the "
            "rest would be of another set; repair the data or leave the bad samples out of it."
        )


def check_shown(num_errors: int, num_questions: int) -> None:
    """Raise UserError if no question could be asked because no image decodes: that tells of the data, not the model."""
    if num_errors and num_errors == num_questions:
        raise UserError(f"None of the images of {num_questions} questions can be decoded; check where they come from.")
