"""CIDEr over a file of captions: by hand, against a plain restatement of the scorer, and against pycocoevalcap."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from vlmkit.evals.scoring.case import Case
from vlmkit.evals.scoring.coco_captions import METRIC, VARIANTS, aggregate, read_answer, score, score_corpus

REFERENCES = [
    ["a man rides a brown horse", "the man is riding his horse on a field", "a horse and its rider"],
    ["two dogs play in the snow", "a pair of dogs running through deep snow"],
    ["a plate with a sandwich and some fries", "sandwich and fries on a white plate", "a lunch of a sandwich"],
    ["a red bus on a city street"],
    ["people wait for a train", "a train arrives at the station as people wait", "train station with people"],
]
CAPTIONS = [
    ["a man rides a brown horse", "a man on a horse", "horse horse horse horse", "a brown brown horse", "the", ""],
    ["two dogs in the snow", "snow in the two dogs", "a cat", "two dogs play in the snow and then they go home"],
    ["a sandwich and fries on a plate", "plate", "some food on a table", "a plate a plate a plate"],
    ["a red bus on a city street", "a bus", "a red double decker bus driving down a city street in the rain at night"],
    ["people at a train station", "train train", "a train", "the train station as people wait for a train"],
]
ROUNDS = [[of_image[turn % len(of_image)] for of_image in CAPTIONS] for turn in range(6)]
"""Six files of five captions, which hold 21 different ones; the corpus is the references, the same for all."""


def cases(captions: list[str]) -> list[Case]:
    return [
        {"prediction": caption, "references": references}
        for caption, references in zip(captions, REFERENCES, strict=True)
    ]


def cider_d(captions: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D by equations 1 to 6 of arXiv 1411.5726, on tokenised text, with dense vectors in float64."""

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        tokens = text.split()
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    scores = np.zeros(len(captions))
    for n in range(1, 5):
        known = sorted({g for texts in references for text in texts for g in grams(text, n)})
        vocabulary = known + sorted({g for text in captions for g in grams(text, n)} - set(known))
        images_with = [sum(any(g in grams(t, n) for t in texts) for texts in references) for g in vocabulary]
        idf = np.log(len(references) / np.maximum(images_with, 1))
        for image, (caption, texts) in enumerate(zip(captions, references, strict=True)):
            hypothesis = np.array([Counter(grams(caption, n))[g] for g in vocabulary]) * idf
            for text in texts:
                reference = np.array([Counter(grams(text, n))[g] for g in vocabulary]) * idf
                norms = np.linalg.norm(hypothesis) * np.linalg.norm(reference)
                cosine = np.minimum(hypothesis, reference) @ reference / norms if norms else 0.0
                gap = len(caption.split()) - len(text.split())
                scores[image] += 10 / 4 / len(texts) * cosine * math.exp(-(gap**2) / 72)
    return scores.tolist()


def test_against_the_equations() -> None:
    for captions in ROUNDS:
        expected = [value / 10 for value in cider_d(captions, REFERENCES)]
        assert score_corpus(cases(captions)) == pytest.approx(expected, abs=1e-12)


def test_against_pycocoevalcap() -> None:
    """The released scorer (1.2) without its Java tokenizer, on text that is tokenised already."""
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    for captions in ROUNDS:
        mean, expected = cider.compute_score(dict(enumerate(REFERENCES)), dict(enumerate([c] for c in captions)))
        scores = score_corpus(cases(captions))
        assert scores == pytest.approx(expected / 10, abs=1e-12)
        scored = [{**case, "score": value} for case, value in zip(cases(captions), scores, strict=True)]
        assert aggregate(scored)[METRIC] == pytest.approx(mean / 10, abs=1e-12)


STAR_OR_RING = [["star"], ["ring"]]
"""Two images: every word of a reference has weight log 2, and so has every word that none has."""


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        # One word: cosine 1 of one length of n-gram in four.
        ("star", 1 / 4),
        ("STAR", 1 / 4),
        ("star.", 1 / 4),
        ("(star)", 1 / 4),
        ("“star”", 1 / 4),
        ("ring", 0),
        ("", 0),
        ("?!", 0),
        ("stars", 0),
        ("stár", 0),
        ("star's", 0),
        ("star-like", 0),
        ("星", 0),
        # Further words: cosine 1 / sqrt(words), damped by the difference in length.
        ("star ring", 1 / 4 / math.sqrt(2) * math.exp(-1 / 72)),
        ("a star", 1 / 4 / math.sqrt(2) * math.exp(-1 / 72)),
        ("star, ring", 1 / 4 / math.sqrt(2) * math.exp(-1 / 72)),
        ("a big star", 1 / 4 / math.sqrt(3) * math.exp(-4 / 72)),
        ("star and so on", 1 / 4 / math.sqrt(4) * math.exp(-9 / 72)),
        ("star 3.5", 1 / 4 / math.sqrt(3) * math.exp(-4 / 72)),
        # Repeats: one of them counts in the product, all of them in the norm.
        ("star star", 1 / 4 / 2 * math.exp(-1 / 72)),
        ("star star star", 1 / 4 / 3 * math.exp(-4 / 72)),
        ("star star ring", 1 / 4 / math.sqrt(5) * math.exp(-4 / 72)),
    ],
)
def test_one_word_by_hand(caption: str, expected: float) -> None:
    pair: list[Case] = [
        {"prediction": text, "references": references}
        for text, references in zip([caption, "x"], STAR_OR_RING, strict=True)
    ]
    assert score_corpus(pair) == pytest.approx([expected, 0])


def test_a_corpus_of_one_tells_nothing_apart() -> None:
    assert score({"prediction": "a red star", "references": ["a red star"]}) == 0


def test_the_words_that_count() -> None:
    case: Case = {"prediction": "A man's T-shirt, 3.5 ft & (red)!", "references": []}
    assert read_answer(case) == "a man's t-shirt 3 5 ft red"
    assert VARIANTS == ("official", "lmms-eval")
