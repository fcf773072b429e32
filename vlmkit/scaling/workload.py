"""What is asked of a model: how long the text is, how long the answer, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass

from vlmkit.errors import UserError


@dataclass(frozen=True)
class Workload:
    """One answer about one image, ``batch_size`` of them at a time. Raises UserError for impossible numbers."""

    text_tokens: int = 50
    """Text tokens beside the visual ones: Q of arXiv 2411.03312."""
    new_tokens: int = 1
    """Tokens of the answer. The prefill gives the first."""
    cached_text: bool = False
    """Whether the text was read before: it is attended to, but costs no prefill (the paper's Q = 0)."""
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.text_tokens < 0:
            raise UserError(f"The number of text tokens is {self.text_tokens}; it cannot be negative.")
        for name, value in (("new tokens", self.new_tokens), ("answers in a batch", self.batch_size)):
            if value < 1:
                raise UserError(f"The number of {name} is {value}; it must be at least 1.")

    @property
    def prefilled_text(self) -> int:
        """Text tokens that the prefill reads."""
        return 0 if self.cached_text else self.text_tokens

    def __str__(self) -> str:
        text = f"{self.text_tokens} text tokens{' (cached)' if self.cached_text else ''}"
        batch = f", batch size {self.batch_size}" if self.batch_size > 1 else ""
        return f"{text}, {self.new_tokens} new token{'s' if self.new_tokens > 1 else ''}{batch}"
