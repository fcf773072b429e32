"""CIDEr-D: how far a caption agrees with the references of its image, in the n-grams that tell images apart.

Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (arXiv 1411.5726), in the form that
captioning papers report. Text is split into lower-case words here, without the Penn Treebank tokenizer and its removal
of punctuation that COCO's scores are computed with: compare with published figures accordingly.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

MAX_NGRAM = 4
SIGMA = 6.0
"""Deviation, in words, of the Gaussian penalty on a difference in length."""
SCALE = 10.0
"""The best score there is: of a caption of four words or more that equals its only reference."""

_WORD = re.compile(r"\w+(?:['-]\w+)*")

_Ngram = tuple[str, ...]


class CiderD:
    """Scores captions against a corpus: ``references`` holds the reference captions of each of its images.

    For n of 1 to 4, a text is the vector of its n-gram counts, each times log(images / df), where df is the number of
    images with the n-gram in some reference (at least 1). The product of caption and reference takes the caption's
    counts no higher than the reference's; the cosine is damped by exp(-d^2 / (2 sigma^2)) for a difference of d words,
    averaged over the references and over n, and multiplied by 10. N-grams that every image has count for nothing, so
    in a corpus of one image all scores are 0.
    """

    def __init__(self, references: Iterable[Sequence[str]]) -> None:
        images = [set().union(*map(_ngrams, of_image)) for of_image in references]
        self._unseen = math.log(len(images))
        frequency = Counter(gram for grams in images for gram in grams)
        self._weight = {gram: self._unseen - math.log(df) for gram, df in frequency.items()}

    def score(self, caption: str, references: Sequence[str]) -> float:
        """CIDEr-D of a caption of one image of the corpus, in 0..10; the score of a corpus is the mean over images."""
        counts = _ngrams(caption)
        return SCALE * sum(self._similarity(counts, _ngrams(other)) for other in references) / len(references)

    def _similarity(self, caption: Counter[_Ngram], reference: Counter[_Ngram]) -> float:
        """The clipped cosine of two texts, averaged over n and damped by their difference in length."""
        dots, squares = np.zeros(MAX_NGRAM), np.zeros((2, MAX_NGRAM))
        for row, counts in enumerate((caption, reference)):
            for gram, count in counts.items():
                squares[row, len(gram) - 1] += (count * self._weight.get(gram, self._unseen)) ** 2
        for gram in caption.keys() & reference.keys():
            clipped = min(caption[gram], reference[gram])
            dots[len(gram) - 1] += clipped * reference[gram] * self._weight.get(gram, self._unseen) ** 2
        product = np.sqrt(squares[0] * squares[1])
        cosines = np.divide(dots, product, out=np.zeros(MAX_NGRAM), where=product > 0)
        difference = _num_words(caption) - _num_words(reference)
        return float(cosines.mean()) * math.exp(-(difference**2) / (2 * SIGMA**2))


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters and digits, joined by apostrophes and hyphens within."""
    return _WORD.findall(text.lower())


def _ngrams(text: str) -> Counter[_Ngram]:
    row = words(text)
    return Counter(tuple(row[start : start + n]) for n in range(1, MAX_NGRAM + 1) for start in range(len(row) - n + 1))


def _num_words(counts: Counter[_Ngram]) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 1)
