"""Opens a source of samples from its specification, KIND:WHERE[?option=value&...].

miniworld:SPLIT?scenes=&seed=&image_size=            captions, conversations, labels   the embedded drawn world
wds:SHARDS?allow_truncated=&cache_gb=&manifest=      captions   tar shards: file, folder, glob or {a..b}, path or URL
csv:FILE?image=&caption=&root=&sep=                  captions   paths of images and captions; .tsv: separated by tabs
parquet:FILES?image=&caption=&root=                  captions   file, folder, glob or {a..b}
jsonl:FILE?images=                                   captions, conversations           JSON lines beside images
hf:NAME?split=&image=&revision=&config=&...          captions, conversations           a set of the hub, or a local one
llava:FILE?images=                                   conversations                     LLaVA's form, JSON or JSONL
folder:DIRECTORY                                     labels                            one subfolder a class

Instead of one specification, captions and conversations may be a mixture: {specification: weight, ...}.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from vlmkit.contracts import Source
from vlmkit.data.miniworld import MiniWorld
from vlmkit.data.samples import CaptionSample, CaptionSource, ConversationSample, LabelledSample, Turn
from vlmkit.data.shards.shard_index import Progress
from vlmkit.data.shards.shards import ShardCaptions
from vlmkit.data.sources.hub import HubCaptions
from vlmkit.data.sources.hub_conversations import HubConversations
from vlmkit.data.sources.image_folder import LabelledFolder
from vlmkit.data.sources.llava_json import LlavaConversations
from vlmkit.data.sources.mixture import CaptionMixture, Mixture
from vlmkit.data.sources.tables import csv_captions, jsonl_captions, parquet_captions
from vlmkit.errors import UserError


class LabelledSource(Source[LabelledSample], Protocol):
    """A source of labelled samples; ``classes`` names the classes of each attribute in the order of their indices."""

    classes: dict[str, list[str]]


def open_captions(spec: str | Mapping[str, float], progress: Progress | None = None) -> CaptionSource:
    """Images with captions. Raises UserError if ``spec`` is wrong or there is nothing to read.

    ``progress`` hears (parts done, of all) when data are indexed or converted at their first use.
    """
    if isinstance(spec, str):
        source: CaptionSource = _open(spec, "captions", _CAPTIONS, progress)
        return source
    return CaptionMixture([open_captions(part, progress) for part in spec], list(spec.values()))


def open_conversations(spec: str | Mapping[str, float]) -> Source[ConversationSample]:
    """Images with questions and answers. Raises UserError if ``spec`` is wrong or there is nothing to read."""
    if isinstance(spec, str):
        source: Source[ConversationSample] = _open(spec, "conversations", _CONVERSATIONS)
        return source
    return Mixture([open_conversations(part) for part in spec], list(spec.values()))


def open_labelled(spec: str) -> LabelledSource:
    """Images with class labels. Raises UserError if ``spec`` is wrong or there is nothing to read."""
    source: LabelledSource = _open(spec, "labels", _LABELS)
    return source


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

    def captions_only(self, index: int) -> tuple[str, ...]:
        """The captions of a scene, which is not drawn."""
        return self.world.captions(index)


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


def _size(text: str) -> float:
    size = float(text)
    if not 0 < size < math.inf:
        raise ValueError(text)
    return size


def _separator(text: str) -> str:
    separator = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(separator) != 1:
        raise ValueError(text)
    return separator


@dataclass(frozen=True)
class _Kind:
    """How one kind of source is opened: called with WHERE and its options, each read by the given function."""

    open: Callable[..., Any]
    options: Mapping[str, Callable[[str], Any]]
    reports: bool = False
    """Whether opening may take long and takes a ``progress``."""


_WORLD_OPTIONS = {"scenes": int, "seed": int, "image_size": int}
_CAPTIONS = {
    "miniworld": _Kind(WorldCaptions, _WORLD_OPTIONS),
    "wds": _Kind(ShardCaptions, {"allow_truncated": _flag, "cache_gb": _size, "manifest": str}, reports=True),
    "csv": _Kind(csv_captions, {"image": str, "caption": str, "root": str, "sep": _separator}),
    "parquet": _Kind(parquet_captions, {"image": str, "caption": str, "root": str}, reports=True),
    "jsonl": _Kind(jsonl_captions, {"images": str}),
    "hf": _Kind(HubCaptions, dict.fromkeys(("split", "image", "caption", "revision", "config"), str)),
}
_CONVERSATIONS = {
    "miniworld": _Kind(WorldConversations, _WORLD_OPTIONS),
    "llava": _Kind(LlavaConversations, {"images": str}),
    "jsonl": _Kind(partial(LlavaConversations, lines=True), {"images": str}),
    "hf": _Kind(
        HubConversations,
        dict.fromkeys(("split", "image", "conversations", "question", "answer", "revision", "config"), str),
    ),
}
_LABELS = {
    "miniworld": _Kind(WorldLabels, _WORLD_OPTIONS),
    "folder": _Kind(LabelledFolder, {}),
}

# A question mark that no option=value follows belongs to WHERE, as in the glob train-000?.tar.
_SPEC = re.compile(r"(?P<kind>\w*):(?P<where>.+?)(?:\?(?P<options>[\w-]+=[^?]*))?")


def _open(spec: str, purpose: str, kinds: Mapping[str, _Kind], progress: Progress | None = None) -> Any:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UserError(f"{spec!r} is not a source; write KIND:WHERE, where KIND is one of {', '.join(kinds)}.")
    kind = kinds.get(match["kind"])
    if kind is None:
        raise UserError(
            f"{match['kind']!r} in {spec!r} is no kind of source for {purpose}; use one of {', '.join(kinds)}."
        )
    options: dict[str, Any] = {"progress": progress} if kind.reports else {}
    query = []
    for assignment in match["options"].split("&") if match["options"] else []:
        name, _, text = assignment.partition("=")
        if _belongs_to_address(match["where"], name, kind.options):
            query.append(assignment)
        else:
            options[name] = _read_option(spec, kind.options, name, text)
    return kind.open("?".join([match["where"], *filter(None, ["&".join(query)])]), **options)


def _belongs_to_address(where: str, name: str, known: Mapping[str, Any]) -> bool:
    """Whether an option is part of a web address (a token, a signature), and no slip of the pen."""
    is_web = where.startswith(("http://", "https://"))
    return is_web and name not in known and not difflib.get_close_matches(name, known, n=1)


def _read_option(spec: str, readers: Mapping[str, Callable[[str], Any]], name: str, text: str) -> Any:
    if name not in readers:
        near = difflib.get_close_matches(name, readers, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(readers) or 'none'}."
        raise UserError(f"The source {spec!r} has no option {name!r}; {hint}")
    try:
        return readers[name](text)
    except (ValueError, KeyError):
        expected = {
            int: "a whole number",
            _flag: "0 or 1",
            _size: "a size above 0",
            _separator: "one character, or tab",
        }[readers[name]]
        raise UserError(f"Option {name} of the source {spec!r} must be {expected}, not {text!r}.") from None
