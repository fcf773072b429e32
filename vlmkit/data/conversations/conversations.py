"""Conversations as token ids: chat template, image places, label mask, and the question as a span of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vlmkit.contracts import IGNORE_INDEX, IMAGE_TOKEN
from vlmkit.data.conversations.chat_template import ChatTemplate, Span
from vlmkit.data.samples import ConversationSample, Turn
from vlmkit.errors import UserError

ConditionOn = Literal["first", "each"]
PromptOrder = Literal["image_first", "text_first"]

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Branch:
    """Token ids after a prefix, and their labels (IGNORE_INDEX except at the assistant's tokens)."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class EncodedSequence:
    """A prefix that is never labelled, and branches that each continue it without seeing one another.

    ``images`` gives, for every block of image places in order of appearance, the index of the image in its sample;
    a block has ``num_visual_tokens`` places. ``query`` holds the ids of the question alone, for a compressor that is
    conditioned on it (empty otherwise).
    """

    prefix: list[int]
    branches: list[Branch]
    images: list[int]
    query: list[int]
    num_visual_tokens: int

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True)
class EncodedPrompt:
    """A question ready for generation: ids that end where the answer begins, and the question alone."""

    ids: list[int]
    images: list[int]
    query: list[int]


class ConversationEncoder:
    """Encodes conversations for one tokenizer, number of visual tokens and maximal length.

    With ``conditioned`` every question has visual tokens of its own, so independent turns share no prefix; a dialogue
    is conditioned on its first question, or, with ``condition_on`` "each", becomes a sequence for each of its
    questions: the dialogue up to its answer, which alone is labelled, with visual tokens for that question.
    ``prompt_order`` says where images stand that the text has no place for: before or after the first question.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_visual_tokens: int,
        max_length: int,
        conditioned: bool = False,
        condition_on: ConditionOn = "first",
        prompt_order: PromptOrder = "image_first",
    ) -> None:
        self.tokenizer = tokenizer
        self.num_visual_tokens = num_visual_tokens
        self.max_length = max_length
        self.conditioned = conditioned
        self.condition_on = condition_on
        self.prompt_order = prompt_order
        self.image_token_id = tokenizer.get_vocab()[IMAGE_TOKEN]
        self._template = ChatTemplate(tokenizer)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()

    def at(self, num_visual_tokens: int) -> ConversationEncoder:
        """The same encoder for another number of visual tokens."""
        other = copy(self)
        other.num_visual_tokens = num_visual_tokens
        return other

    def encode(self, sample: ConversationSample) -> list[EncodedSequence]:
        """The sample as sequences of at most ``max_length`` tokens, in the order of its turns.

        A dialogue is one sequence, cut at the end if it is too long (where each question has a sequence, those whose
        answer is cut off are left out). Independent turns are branches behind what they share up to the image (several
        sequences if one is too short for them), each cut on its own; where the image follows the question they share
        nothing. Raises UserError, naming the sample, where a turn or dialogue trains nothing, or places and images
        differ in number.
        """
        dialogues = [[turn] for turn in sample.turns] if sample.independent else [list(sample.turns)]
        if not sample.turns or any(not turn.answer.strip() for turn in sample.turns):
            raise UserError(f"Sample {sample.id} has an empty answer and trains nothing; remove or complete it.")
        if self.conditioned and self.condition_on == "each" and not sample.independent:
            return self._encode_each(sample)
        rendered = [self._render(self._contents(turns, sample), sample) for turns in dialogues]
        heads = {_head(text) for text, _ in rendered}
        shared = heads.pop() if len(heads) == 1 and not self.conditioned else None
        if shared is not None:
            return self._encode_shared(sample, shared, rendered)
        branches = self._branches(rendered, 0, sample)
        images = list(range(len(sample.images)))
        return [
            self._sequence([], [self._cut(branch, 0, sample)], images, self._query(turns[0], sample))
            for branch, turns in zip(branches, dialogues, strict=True)
        ]

    def prompt(
        self, question: str, num_images: int = 1, identifier: str = "prompt", history: Sequence[Turn] = ()
    ) -> EncodedPrompt:
        """A question about ``num_images`` images, after the turns of its dialogue so far, up to where the assistant
        begins to answer."""
        sample = ConversationSample(identifier, (b"",) * num_images, (*history, Turn(question, "")))
        text, _ = self._template.render(self._contents(list(sample.turns), sample)[:-1])
        ids = self._expand(self._backend.encode(text, add_special_tokens=False).ids)
        return EncodedPrompt(ids, list(range(num_images)), self._asked(sample))

    def answered(
        self,
        question: str,
        answer: str,
        num_images: int = 1,
        identifier: str = "prompt",
        history: Sequence[Turn] = (),
    ) -> tuple[EncodedPrompt, list[int]]:
        """Such a question with its answer, whole, and the labels: IGNORE_INDEX except at the answer's tokens."""
        sample = ConversationSample(identifier, (b"",) * num_images, (*history, Turn(question, answer)))
        text, spans = self._render(self._contents(list(sample.turns), sample), sample)
        (branch,) = self._branches([(text, spans[-1:])], 0, sample)
        return EncodedPrompt(branch.ids, list(range(num_images)), self._asked(sample)), branch.labels

    def _asked(self, sample: ConversationSample) -> list[int]:
        """The question that visual tokens are formed for when the last one is answered."""
        return self._query(sample.turns[-1 if self.condition_on == "each" else 0], sample)

    def _encode_each(self, sample: ConversationSample) -> list[EncodedSequence]:
        contents = self._contents(list(sample.turns), sample)
        sequences: list[EncodedSequence] = []
        for number, turn in enumerate(sample.turns, 1):
            text, spans = self._render(contents[: 2 * number], sample)
            (branch,) = self._branches([(text, spans[-1:])], 0, sample)
            if sequences and all(label == IGNORE_INDEX for label in branch.labels[: self.max_length]):
                break
            images = list(range(sum(content.count(IMAGE_TOKEN) for content in contents[: 2 * number])))
            branch = self._cut(branch, 0, sample)
            sequences.append(self._sequence([], [branch], images, self._query(turn, sample)))
        return sequences

    def _sequence(
        self, prefix: list[int], branches: list[Branch], images: list[int], query: list[int]
    ) -> EncodedSequence:
        return EncodedSequence(prefix, branches, images, query, self.num_visual_tokens)

    def _render(self, contents: list[str], sample: ConversationSample) -> tuple[str, list[Span]]:
        try:
            return self._template.render(contents)
        except UserError as error:
            raise UserError(f"Sample {sample.id} cannot be written as a chat: {error}") from error

    def _contents(self, turns: list[Turn], sample: ConversationSample) -> list[str]:
        contents = [text for turn in turns for text in (turn.question, turn.answer)]
        places = sum(text.count(IMAGE_TOKEN) for text in contents)
        if places == 0 and sample.images:
            if self.prompt_order == "image_first":
                contents[0] = f"{IMAGE_TOKEN}\n" * len(sample.images) + contents[0]
            else:
                contents[0] += f"\n{IMAGE_TOKEN}" * len(sample.images)
        elif places != len(sample.images):
            raise UserError(
                f"Sample {sample.id} has {len(sample.images)} images but {places} places for one ({IMAGE_TOKEN}); "
                "make them agree, or leave the places out."
            )
        return contents

    def _encode_shared(
        self, sample: ConversationSample, head: str, rendered: list[tuple[str, list[Span]]]
    ) -> list[EncodedSequence]:
        prefix = self._expand(self._backend.encode(head, add_special_tokens=False).ids) if head else []
        if len(prefix) >= self.max_length:
            raise UserError(
                f"Sample {sample.id} needs {len(prefix)} tokens before its first word, but max_length is "
                f"{self.max_length}; raise max_length or choose fewer visual tokens."
            )
        images = list(range(len(sample.images)))
        groups: list[list[Branch]] = [[]]
        room = self.max_length - len(prefix)
        for branch in self._branches(rendered, len(head), sample):
            branch = self._cut(branch, len(prefix), sample)
            if len(branch.ids) > room:
                groups.append([])
                room = self.max_length - len(prefix)
            groups[-1].append(branch)
            room -= len(branch.ids)
        return [self._sequence(prefix, group, images, []) for group in groups]

    def _branches(self, rendered: list[tuple[str, list[Span]]], skip: int, sample: ConversationSample) -> list[Branch]:
        """Tokens and labels of each text from character ``skip`` on, which is 0 or just behind the last image place."""
        # The image token stays in front while tokenizing, so that what follows is split as it is in the whole text.
        begin = skip - len(IMAGE_TOKEN) if skip else 0
        texts = [text[begin:] for text, _ in rendered]
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        branches = []
        for encoding, (_, spans) in zip(encodings, rendered, strict=True):
            ids = encoding.ids
            labels = _labels(encoding, [(start - begin, end - begin) for start, end in spans])
            if skip:
                assert ids[0] == self.image_token_id
                branches.append(Branch(ids[1:], labels[1:]))
            else:
                branches.append(Branch(self._expand(ids), self._expand(labels, ids)))
        return branches

    def _cut(self, branch: Branch, prefix: int, sample: ConversationSample) -> Branch:
        room = self.max_length - prefix
        ids, labels = branch.ids, branch.labels
        if len(ids) > room:
            if self.image_token_id in ids[room:]:
                raise UserError(
                    f"Sample {sample.id} does not fit its images into {self.max_length} tokens; raise max_length or "
                    "choose fewer visual tokens."
                )
            ids, labels = ids[:room], labels[:room]
        if all(label == IGNORE_INDEX for label in labels[1:]):
            raise UserError(
                f"Sample {sample.id} trains nothing: within {self.max_length} tokens there is no token of an answer; "
                "raise max_length or remove the sample."
            )
        return Branch(ids, labels)

    def _query(self, turn: Turn, sample: ConversationSample) -> list[int]:
        if not self.conditioned:
            return []
        question = turn.question.replace(IMAGE_TOKEN, "").strip()
        if not question:
            raise UserError(
                f"Sample {sample.id} has no words in its question, which the compressor is conditioned on; "
                "use a compressor that is not (avgpool) or complete the sample."
            )
        return self._backend.encode(question).ids[: self.max_length]

    def _expand(self, values: list[int], ids: list[int] | None = None) -> list[int]:
        """Repeat each value that stands at an image token once for every visual token."""
        if self.num_visual_tokens == 1:
            return values
        expanded: list[int] = []
        for value, token in zip(values, ids or values, strict=True):
            expanded += [value] * (self.num_visual_tokens if token == self.image_token_id else 1)
        return expanded


def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where an answer ends: the tokenizer's end token, and the special token that ends one in the chat template."""
    encoder = ConversationEncoder(tokenizer, num_visual_tokens=1, max_length=sys.maxsize)
    (sequence,) = encoder.encode(ConversationSample("stop", (), (Turn("question", "answer"),)))
    last = [label for label in sequence.branches[0].labels if label != IGNORE_INDEX][-1]
    # Those that only the added tokens know of (Phi-3) are no part of all_special_ids.
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted({int(tokenizer.eos_token_id)} | ({last} & special.union(tokenizer.all_special_ids)))


def _head(text: str) -> str:
    """The text up to and including its last image place."""
    at = text.rfind(IMAGE_TOKEN)
    return text[: at + len(IMAGE_TOKEN)] if at >= 0 else ""


def _labels(encoding: Encoding, spans: list[Span]) -> list[int]:
    """Ids of the tokens that overlap a span (spans ascend), IGNORE_INDEX at all others."""
    ids, offsets = encoding.ids, encoding.offsets
    labels = [IGNORE_INDEX] * len(ids)
    position = 0
    for first, last in spans:
        while position < len(ids) and offsets[position][1] <= first:
            position += 1
        while position < len(ids) and offsets[position][0] < last:
            labels[position] = ids[position]
            position += 1
    return labels
