"""What the labels of a run are: how many a caption gives, what is cut or masked, which tokens are common or heavy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Encoding

from vlmkit.config import LabelConfig
from vlmkit.contracts import Source
from vlmkit.data.caption_tokenizers import LabelTokenizer
from vlmkit.data.corpus import captions_at
from vlmkit.data.samples import CaptionSample
from vlmkit.errors import UserError
from vlmkit.evals.label_picture import draw_labels
from vlmkit.runs import write_atomically

REPORT_FILE, PICTURE_FILE = "label_report.json", "label_report.png"
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
TOP = 20
"""Tokens of each list in the report."""
FEW = 3
"""Captions that a token must be in to be listed as heavy: the very heaviest are those seen once, by chance any."""

_BATCH = 256
"""Samples whose captions are tokenised together."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenRow(_Frozen):
    """A token: its id and text (``CaptionTokenizer.readable_texts``: ``re-`` goes on, ``-ing`` continues a word,
    ``<0xE2>`` is a byte), the share of the captions read that hold it, and its weight in the loss."""

    id: int
    text: str
    captions: float
    weight: float | None


class LabelReport(_Frozen):
    """The labels of a caption source. Shares are of 1.

    ``truncated``: captions longer than the context. ``unlabelled``: captions without a label. ``labels_histogram[k]``:
    captions with k labels; ``labels_percentiles[p]``: labels that p percent of the captions do not exceed.
    ``num_classes``: ids that can be labels; ``classes_seen``: the share of them that is a label of some caption.
    ``tokens_labelled``: of the tokens of all captions, with repetitions and before any cut, the share that is a label;
    what the tokenizer adds to a caption does not count. ``frequent``, ``weights_low`` and ``weights_high`` list the
    tokens seen: the most common, the lightest and the heaviest first, these only if ``heavy_captions`` captions or
    more hold them; of equal ones the more common first, then the larger id (of merges the later, of longer texts). Both
    lists of weights are empty where all labels weigh alike.
    """

    settings: LabelConfig
    source: str
    samples: int
    samples_read: int
    captions: int
    truncated: float
    unlabelled: float
    labels_mean: float
    labels_percentiles: dict[int, int]
    labels_histogram: list[int]
    num_classes: int
    classes_seen: float
    tokens_labelled: float
    frequent: list[TokenRow]
    heavy_captions: int = FEW
    weights_high: list[TokenRow]
    weights_low: list[TokenRow]

    def facts(self) -> list[tuple[str, str]]:
        """The report's numbers as lines of a table for people."""
        low, middle, high = (self.labels_percentiles[percent] for percent in (5, 50, 95))
        return [
            ("captions read", f"{self.captions} of {self.samples_read} samples (the source has {self.samples})"),
            ("labels per caption", f"mean {self.labels_mean:.1f}, median {middle}, 5 to 95 % {low} to {high}"),
            ("captions without label", f"{self.unlabelled:.2%}"),
            ("captions cut at the context", f"{self.truncated:.2%}"),
            ("classes seen", f"{self.classes_seen:.2%} of {self.num_classes}"),
            ("caption tokens that are labels", f"{self.tokens_labelled:.2%}"),
        ]

    def write(self, directory: str | Path) -> None:
        """Write ``label_report.json`` and ``label_report.png`` into ``directory``, which exists."""
        draw_labels(self, Path(directory) / PICTURE_FILE)
        write_atomically(Path(directory) / REPORT_FILE, self.model_dump_json(indent=2) + "\n")


def read_label_report(directory: str | Path) -> LabelReport:
    """The report that was written into ``directory``. Raises UserError if there is none."""
    path = Path(directory) / REPORT_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} holds no {REPORT_FILE}, which a run of superclass or superclip writes when it ends; give "
            "--train-data with the captions to report on, e.g. those it was trained on."
        )
    return LabelReport.model_validate_json(path.read_text(encoding="utf-8"))


def label_report(
    source: Source[CaptionSample],
    tokenizer: LabelTokenizer,
    labels: LabelConfig,
    weights: torch.Tensor | None = None,
    limit: int = 10_000,
) -> LabelReport:
    """Read the captions of at most ``limit`` samples, spread evenly over the source, and describe their labels.

    ``labels`` are the settings ``tokenizer`` was built from. ``weights`` [V] are those of the tokens in the loss, None
    where all weigh alike. Every caption of a sample counts; bad samples and empty captions do not. The same input
    gives the same report. Raises UserError where no caption can be read.
    """
    samples_read = min(limit, len(source))
    tally = _Tally(tokenizer)
    for captions in _batches(source, samples_read):
        tally.add(captions)
    if not tally.labels_per_caption:
        raise UserError("No caption of the source can be read, so there is nothing to report; check the data.")
    per_caption = np.array(tally.labels_per_caption)
    percentiles = np.percentile(per_caption, PERCENTILES, method="inverted_cdf")
    num_classes = int(tokenizer.is_label.sum())
    heights = None if weights is None else weights.double().cpu().numpy()
    return LabelReport(
        settings=labels,
        source=source.fingerprint,
        samples=len(source),
        samples_read=samples_read,
        captions=len(per_caption),
        truncated=tally.truncated / len(per_caption),
        unlabelled=float((per_caption == 0).mean()),
        labels_mean=float(per_caption.mean()),
        labels_percentiles=dict(zip(PERCENTILES, percentiles.tolist(), strict=True)),
        labels_histogram=np.bincount(per_caption).tolist(),
        num_classes=num_classes,
        classes_seen=len(tally.seen()) / num_classes,
        tokens_labelled=tally.labelled / max(1, tally.tokens),
        frequent=tally.first(-tally.document_frequency, heights),
        weights_high=[] if heights is None else tally.first(-heights, heights, FEW),
        weights_low=[] if heights is None else tally.first(heights, heights),
    )


def _batches(source: Source[CaptionSample], samples_read: int) -> Iterator[list[str]]:
    indices = [number * len(source) // samples_read for number in range(samples_read)]
    for start in range(0, samples_read, _BATCH):
        yield list(chain.from_iterable(captions_at(source, index) for index in indices[start : start + _BATCH]))


class _Tally:
    """What the captions read so far add up to."""

    def __init__(self, tokenizer: LabelTokenizer) -> None:
        self._tokenizer = tokenizer
        self.labels_per_caption: list[int] = []
        self.document_frequency = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self.truncated = self.tokens = self.labelled = 0

    def add(self, captions: Sequence[str]) -> None:
        is_label = self._tokenizer.is_label
        for encoding in self._tokenizer.tokenizer.encodings(captions):
            bag = self._tokenizer.bag_of(encoding)
            self.labels_per_caption.append(bag.size)
            self.document_frequency[bag] += 1
            added = np.array(encoding.special_tokens_mask, dtype=np.bool_)
            self.labelled += int((is_label[encoding.ids] & ~added).sum())
            cut = encoding.overflowing
            self.truncated += bool(cut)
            self.tokens += sum(_num_tokens(part) for part in (encoding, *cut))

    def seen(self, captions: int = 1) -> np.ndarray:
        """The ids that are a label of that many captions or more, ascending."""
        return np.flatnonzero(self.document_frequency >= captions)

    @cached_property
    def _texts(self) -> list[str]:
        return self._tokenizer.tokenizer.readable_texts()

    def first(self, keys: np.ndarray, weights: np.ndarray | None, captions: int = 1) -> list[TokenRow]:
        """The labels seen in that many captions whose keys [V] are smallest, in the report's order."""
        seen = self.seen(captions)
        order = np.lexsort((-seen, -self.document_frequency[seen], keys[seen]))
        shares = self.document_frequency / len(self.labels_per_caption)
        return [
            TokenRow(
                id=token,
                text=self._texts[token],
                captions=float(shares[token]),
                weight=None if weights is None else float(weights[token]),
            )
            for token in seen[order[:TOP]].tolist()
        ]


def _num_tokens(encoding: Encoding) -> int:
    return len(encoding.ids) - sum(encoding.special_tokens_mask)
