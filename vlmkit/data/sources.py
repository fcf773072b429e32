"""Opens a source of samples from its specification, KIND:WHERE[?option=value&...].

miniworld:SPLIT?scenes=&seed=&image_size=   captions, conversations, labels   the embedded drawn world
wds:SHARDS?allow_truncated=                 captions                          tar shards: file, folder, glob or {a..b}
llava:FILE.json?images=                     conversations                     LLaVA's JSON form
folder:DIRECTORY                            labels                            one subfolder a class
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from vlmkit.contracts import Source
from vlmkit.data.image_folder import LabelledFolder
from vlmkit.data.llava_json import LlavaConversations
from vlmkit.data.miniworld import MiniWorld
from vlmkit.data.samples import CaptionSample, ConversationSample, LabelledSample, Turn
from vlmkit.data.shards import ShardCaptions
from vlmkit.errors import UserError


class LabelledSource(Source[LabelledSample], Protocol):
    """A source of labelled samples; ``classes`` names the classes of each attribute in the order of their indices."""

    classes: dict[str, list[str]]


def open_captions(spec: str) -> Source[CaptionSample]:
    """Images with captions. Raises UserError if ``spec`` is wrong or there is nothing to read."""
    return _open(spec, "captions", _CAPTIONS)


def open_conversations(spec: str) -> Source[ConversationSample]:
    """Images with questions and answers. Raises UserError if ``spec`` is wrong or there is nothing to read."""
    return _open(spec, "conversations", _CONVERSATIONS)


def open_labelled(spec: str) -> LabelledSource:
    """Images with class labels. Raises UserError if ``spec`` is wrong or there is nothing to read."""
    return _open(spec, "labels", _LABELS)


_SCENES = {"train": 16000, "val": 2000, "test": 2000}


class _World:
    """What all views of the embedded world share."""

    def __init__(self, split: str, scenes: int | None = None, seed: int = 0, image_size: int = 64) -> None:
        self.world = MiniWorld(split, _SCENES.get(split, 1) if scenes is None else scenes, seed, image_size)
        self.fingerprint = self.world.fingerprint

    def __len__(self) -> int:
        return len(self.world)


class WorldCaptions(_World):
    """The embedded world as captions, several wordings a scene."""

    def __getitem__(self, index: int) -> CaptionSample:
        return CaptionSample(self.world.image(index), self.world.captions(index))


class WorldConversations(_World):
    """The embedded world as questions that do not see one another."""

    def __getitem__(self, index: int) -> ConversationSample:
        turns = tuple(Turn(question, answer, family) for question, answer, family in self.world.questions(index))
        identity = f"miniworld-{self.world.split}-{index}"
        return ConversationSample(identity, (partial(self.world.image, index),), turns, independent=True)


class WorldLabels(_World):
    """The embedded world as labelled images."""

    classes = MiniWorld.classes

    def __getitem__(self, index: int) -> LabelledSample:
        return LabelledSample(self.world.image(index), self.world.labels(index))


def _flag(text: str) -> bool:
    return {"0": False, "false": False, "1": True, "true": True}[text.lower()]


@dataclass(frozen=True)
class _Kind:
    """How one kind of source is opened: called with WHERE and its options, each read by the given function."""

    open: Callable[..., Any]
    options: Mapping[str, Callable[[str], Any]]


_WORLD_OPTIONS = {"scenes": int, "seed": int, "image_size": int}
_CAPTIONS = {
    "miniworld": _Kind(WorldCaptions, _WORLD_OPTIONS),
    "wds": _Kind(ShardCaptions, {"allow_truncated": _flag}),
}
_CONVERSATIONS = {
    "miniworld": _Kind(WorldConversations, _WORLD_OPTIONS),
    "llava": _Kind(LlavaConversations, {"images": str}),
}
_LABELS = {
    "miniworld": _Kind(WorldLabels, _WORLD_OPTIONS),
    "folder": _Kind(LabelledFolder, {}),
}

# A question mark that no option=value follows belongs to WHERE, as in the glob train-000?.tar.
_SPEC = re.compile(r"(?P<kind>\w*):(?P<where>.+?)(?:\?(?P<options>\w+=[^?]*))?")


def _open(spec: str, purpose: str, kinds: Mapping[str, _Kind]) -> Any:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UserError(f"{spec!r} is not a source; write KIND:WHERE, where KIND is one of {', '.join(kinds)}.")
    kind = kinds.get(match["kind"])
    if kind is None:
        raise UserError(f"{match['kind']!r} in {spec!r} is no kind of source for {purpose}; use {' or '.join(kinds)}.")
    options = {}
    for assignment in match["options"].split("&") if match["options"] else []:
        name, _, text = assignment.partition("=")
        options[name] = _read_option(spec, kind.options, name, text)
    return kind.open(match["where"], **options)


def _read_option(spec: str, readers: Mapping[str, Callable[[str], Any]], name: str, text: str) -> Any:
    if name not in readers:
        near = difflib.get_close_matches(name, readers, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(readers) or 'none'}."
        raise UserError(f"The source {spec!r} has no option {name!r}; {hint}")
    try:
        return readers[name](text)
    except (ValueError, KeyError):
        expected = {int: "a whole number", _flag: "0 or 1"}[readers[name]]
        raise UserError(f"Option {name} of the source {spec!r} must be {expected}, not {text!r}.") from None
