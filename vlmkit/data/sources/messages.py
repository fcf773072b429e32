"""Conversations in the forms that files and data sets have them: turns by LLaVA, by role, or as question and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.data.samples import Turn
from vlmkit.errors import UserError

CONVERSATION_NAMES = ("conversations", "conversation", "messages", "texts")
QUESTION_NAMES = ("question", "query", "instruction", "prompt")
ANSWER_NAMES = ("answer", "answers", "response", "output")
"""What such columns are called, the commonest name first."""

_FORMS = (("from", "value"), ("role", "content"))
_SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


def read_messages(messages: Any, where: str, family: str = "") -> tuple[Turn, ...]:
    """The turns of a conversation: questions and answers in turn.

    A message is ``{"from": "human" | "gpt", "value": text}`` or ``{"role": "user" | "assistant", "content": ...}``,
    whose content is a text or a list of parts ``{"type": "text", "text": ...}`` and ``{"type": "image"}``; or a message
    is a whole turn, ``{"user": text, "assistant": text}``. What a first ``system`` message says comes before the first
    question. Raises UserError, naming ``where``, if they are anything else or do not alternate.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"There are no turns in {where}; each conversation is a list of questions and answers in turn.")
    if isinstance(messages[0], Mapping) and {"user", "assistant"} <= messages[0].keys():
        pairs = [_pair(message, number, where) for number, message in enumerate(messages)]
    else:
        texts = _alternating(messages, where)
        pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return tuple(Turn(question, answer, family) for question, answer in pairs)


def read_answer(question: Any, answer: Any, where: str, family: str = "") -> Turn:
    """A question with its answer, or with a list of answers that all count as right; the first is trained on."""
    answers = answer if isinstance(answer, list) else [answer]
    if not isinstance(question, str) or not answers or not all(isinstance(text, str) for text in answers):
        raise UserError(f"The question or the answer of {where} is not a text; correct the row or leave it out.")
    return Turn(question, answers[0], family, tuple(dict.fromkeys(answers)))


def check_places(turns: Sequence[Turn], num_images: int, where: str) -> None:
    """Raise UserError unless the texts hold a place for each image, or none at all."""
    places = sum(text.count(IMAGE_TOKEN) for turn in turns for text in (turn.question, turn.answer))
    if places not in (0, num_images):
        raise UserError(
            f"There are {places} places for an image ({IMAGE_TOKEN}) but {num_images} images in {where}; "
            "make them agree, or leave the places out."
        )


def _pair(message: Any, number: int, where: str) -> tuple[str, str]:
    pair = (message.get("user"), message.get("assistant")) if isinstance(message, Mapping) else (None, None)
    if not all(isinstance(text, str) for text in pair):
        raise UserError(f"Turn {number} of {where} lacks the text of its user or assistant; correct the row.")
    return pair  # type: ignore[return-value]


def _alternating(messages: list[Any], where: str) -> list[str]:
    """Texts of the messages: question, answer, question, answer, ..."""
    system, texts = "", list[str]()
    for position, message in enumerate(messages):
        speaker, text = _read(message, position, where)
        if speaker == "system" and position == 0:
            system = text.strip()
            continue
        if _SPEAKERS.get(speaker) != len(texts) % 2:
            due = ("human", "gpt") if "from" in message else ("user", "assistant")
            raise UserError(
                f"Turn {position} of {where} is not from {due[len(texts) % 2]}; {due[0]} and {due[1]} must alternate, "
                f"{due[0]} first."
            )
        texts.append(text)
    if len(texts) % 2 or not texts:
        raise UserError(f"The last question of {where} has no answer; add one or leave the question out.")
    if system:
        texts[0] = f"{system}\n\n{texts[0]}"
    return texts


def _read(message: Any, position: int, where: str) -> tuple[str, str]:
    """Who speaks, and the text."""
    for who, what in _FORMS:
        if isinstance(message, Mapping) and isinstance(message.get(who), str):
            text = _text(message.get(what))
            if text is None:
                raise UserError(f"Turn {position} of {where} has no text as its `{what}`; correct the record.")
            return message[who], text
    raise UserError(f"Turn {position} of {where} has neither `from` and `value` nor `role` and `content`; correct it.")


def _text(content: Any) -> str | None:
    """The text of a content, with a place for each image part; None if it is neither text nor parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            parts.append(IMAGE_TOKEN)
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            return None
    return "\n".join(parts)
