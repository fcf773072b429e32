"""Chat templates, rendered fast, with the character spans that the assistant writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from vlmkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Templates look into a message for markup at most (tool calls, reasoning tags): text without any is passed through.
_MARKUP = re.compile(r"[<>\[\]{}|]")
# Image places before and after the words of a message, which templates may also look at.
_PLACES = re.compile(r"((?:<image>\s*)*)(.*?)((?:\s*<image>)*)", re.DOTALL)
# What Llama 3's templates say where no date is to be had: a run that goes on tomorrow must not read other prompts.
_DATE = "26 Jul 2024"
_Places = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Frame:
    """A template applied to placeholders: the text between the messages, and where each answer's span begins and ends.

    ``reach[i]`` = (start of span i relative to the start of answer i, end of span i relative to the end of answer i).
    """

    pieces: tuple[str, ...]
    reach: tuple[Span, ...]

    def fill(self, contents: list[str]) -> tuple[str, list[Span]]:
        parts, spans, position = [self.pieces[0]], [], len(self.pieces[0])
        for i, (content, piece) in enumerate(zip(contents, self.pieces[1:], strict=True)):
            if i % 2:
                before, after = self.reach[i // 2]
                spans.append((position + before, position + len(content) + after))
            parts += (content, piece)
            position += len(content) + len(piece)
        return "".join(parts), spans


class ChatTemplate:
    """A tokenizer's chat template as a function from contents to text and assistant spans.

    A span holds the assistant's words and its end token: what ``{% generation %}`` encloses where the template has it,
    otherwise what follows the prompt for the assistant, up to the first special token after its words. For each shape
    of conversation (number of messages, image places) the template is rendered once on placeholders and filled in
    afterwards, if a second rendering agrees; contents with markup always go through the template itself.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._template = tokenizer.get_chat_template()
        self._special = dict(tokenizer.special_tokens_map)
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special_tokens = list(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]))
        self._marks_answers = bool(_GENERATION.search(self._template))
        self._frames: dict[_Places, _Frame | None] = {}

    def render(self, contents: list[str]) -> tuple[str, list[Span]]:
        """Text of a conversation (user and assistant contents in turn) and the character span of each answer.

        Contents are stripped. A conversation that ends with a user content ends in the prompt for the assistant.
        Raises UserError if the template refuses the conversation or its answers cannot be located.
        """
        contents = [content.strip() for content in contents]
        split = [_PLACES.fullmatch(content).groups() for content in contents]  # type: ignore[union-attr]
        words = [word for _, word, _ in split]
        if not any(map(_MARKUP.search, words)):
            frame = self._frame(tuple((before, after) for before, _, after in split))
            if frame is not None:
                return frame.fill(words)
        return self._exact(contents)

    def _frame(self, places: _Places) -> _Frame | None:
        if places not in self._frames:
            frame = self._build_frame(places)
            trial = [f"Which {i} is it" if i % 2 == 0 else f"{i} red, or so." for i in range(len(places))]
            trustworthy = frame is not None and frame.fill(trial) == self._exact(_put(places, trial))
            self._frames[places] = frame if trustworthy else None
        return self._frames[places]

    def _build_frame(self, places: _Places) -> _Frame | None:
        marks = [f"\ue000{i}\ue001" for i in range(len(places))]
        text, spans = self._exact(_put(places, marks))
        if any(text.count(mark) != 1 for mark in marks):
            return None
        starts = [text.index(mark) for mark in marks]
        ends = [start + len(mark) for start, mark in zip(starts, marks, strict=True)]
        pieces = tuple(text[end:start] for end, start in zip([0, *ends], [*starts, len(text)], strict=True))
        reach = tuple(
            (span[0] - start, span[1] - end) for span, start, end in zip(spans, starts[1::2], ends[1::2], strict=True)
        )
        return _Frame(pieces, reach)

    def _exact(self, contents: list[str]) -> tuple[str, list[Span]]:
        text, generated = self._jinja(contents)
        answers = len(contents) // 2
        if not self._marks_answers:
            generated = [self._answered(contents[: 2 * turn + 2], text) for turn in range(answers)]
        if len(generated) != answers or any(not 0 <= start < end <= len(text) for start, end in generated):
            raise UserError(
                "The tokenizer's chat template does not mark every answer with {% generation %}; "
                "mend the template (chat_template.jinja) or use another tokenizer."
            )
        return text, generated

    def _answered(self, contents: list[str], full: str) -> Span:
        """The span in ``full`` of the last answer of ``contents``, which ``full`` goes on from.

        The prompt for the assistant ends where it begins. Templates may write more after the last answer of a
        conversation than after earlier ones (Phi-3), or before it (Qwen3).
        """
        prompt, _ = self._jinja(contents[:-1])
        alone, _ = self._jinja(contents)
        answer, rest, gained = contents[-1], full[len(prompt) :], alone[len(prompt) :]
        said = len(rest) - len(rest.lstrip()) + len(answer)
        if rest[:said].strip() != answer:  # more than white space comes first
            said = gained.rfind(answer) + len(answer)
        if not (full.startswith(prompt) and alone.startswith(prompt) and rest[:said].endswith(answer)):
            raise UserError(
                "The tokenizer's chat template rewrites messages, so answers cannot be told from prompts; "
                "put {% generation %} around the answer in the template (chat_template.jinja)."
            )
        shared = next((i for i, (a, b) in enumerate(zip(rest, gained, strict=False)) if a != b), len(gained))
        until = rest[:shared] if shared >= said else rest
        stops = [(at, token) for token in self._special_tokens if (at := until.find(token, said)) >= 0]
        end = min(at + len(token) for at, token in stops) if stops else len(until.rstrip())
        return len(prompt), len(prompt) + end

    def _jinja(self, contents: list[str]) -> tuple[str, list[Span]]:
        messages = [
            {"role": "assistant" if i % 2 else "user", "content": content} for i, content in enumerate(contents)
        ]
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                chat_template=self._template,
                return_assistant_tokens_mask=self._marks_answers,
                add_generation_prompt=len(contents) % 2 == 1,
                date_string=_DATE,
                **cast(Any, self._special),
            )
        except TemplateError as error:
            raise UserError(
                f"The tokenizer's chat template refuses a conversation of {len(contents)} messages ({error}); "
                "mend the template (chat_template.jinja) or use another tokenizer."
            ) from error
        texts, spans = rendered
        return texts[0], [(int(start), int(end)) for start, end in spans[0]] if self._marks_answers else []


def _put(places: _Places, words: list[str]) -> list[str]:
    return [before + word + after for (before, after), word in zip(places, words, strict=True)]
