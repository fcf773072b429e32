"""How questions are put: with the lines of LLaVA's ``docs/Evaluation.md`` and of lmms-eval's task files below them."""

from __future__ import annotations

from collections.abc import Sequence

SHORT_ANSWER = "Answer the question using a single word or phrase."
SINGLE_WORD = "Answer the question with a single word."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def short_answer(question: str) -> str:
    """The question, to be answered by a word or phrase."""
    return f"{question}\n{SHORT_ANSWER}"


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """The question with its choices, one a line behind their letters, to be answered by a letter."""
    return "\n".join([question, *lettered(choices), OPTION_LETTER])


def lettered(choices: Sequence[str]) -> list[str]:
    """``A. first``, ``B. second``, ..."""
    return [f"{chr(ord('A') + number)}. {choice}" for number, choice in enumerate(choices)]
