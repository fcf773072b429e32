"""CIDEr-D against scores worked out by hand."""

from __future__ import annotations

import math

import pytest

from vlmkit.evals.scoring.cider import CiderD

CORPUS = [["a red star"], ["a blue ring"], ["a red ring", "one ring that is red"]]


def test_a_caption_equal_to_its_reference_has_the_full_score_of_each_length() -> None:
    """Cosine 1 for one, two and three words, none for four: 10 * 3 / 4."""
    assert CiderD(CORPUS).score("a red star", ["a red star"]) == pytest.approx(7.5)
    four = [["a small red star"], ["a blue ring"]]
    assert CiderD(four).score("a small red star", four[0]) == pytest.approx(10.0)


def test_words_weigh_by_how_many_images_have_them() -> None:
    """Three images: ``a`` is in all (weight 0), ``red`` and ``ring`` in two, ``star`` and ``blue`` in one.

    Candidate "a red ring" against "a blue ring": single words (red, ring) with weights log 3/2 each against (blue:
    log 3, ring: log 3/2); pairs "a red", "red ring" against "a blue", "blue ring" and the triple share nothing.
    """
    rare, common = math.log(3), math.log(3 / 2)
    cosine = common**2 / (math.hypot(common, common) * math.hypot(rare, common))
    assert CiderD(CORPUS).score("a red ring", CORPUS[1]) == pytest.approx(10 * cosine / 4)


def test_references_are_averaged() -> None:
    corpus = CiderD(CORPUS)
    singles = [corpus.score("a red ring", [reference]) for reference in CORPUS[2]]
    assert corpus.score("a red ring", CORPUS[2]) == pytest.approx(sum(singles) / 2)


def test_repeating_a_word_does_not_pay() -> None:
    """Two stars against one: the product counts one, the norm of the caption two, cosine 1/2; one word more."""
    corpus = CiderD([["star"], ["ring"]])
    expected = 10 / 4 * (1 / 2) * math.exp(-1 / 72)
    assert corpus.score("star star", ["star"]) == pytest.approx(expected)
    assert corpus.score("star", ["star"]) == pytest.approx(2.5)


def test_a_difference_in_length_is_damped() -> None:
    """One of four words of equal weight is shared: cosine 1 / sqrt(4); three words more."""
    corpus = CiderD([["star"], ["ring"]])
    assert corpus.score("star and so on", ["star"]) == pytest.approx(10 / 4 * (1 / 2) * math.exp(-9 / 72))


def test_case_and_punctuation_do_not_count() -> None:
    corpus = CiderD(CORPUS)
    assert corpus.score("A red, star.", CORPUS[0]) == corpus.score("a red star", CORPUS[0])


@pytest.mark.parametrize("caption", ["", "...", "nothing of the kind", "a"])
def test_nothing_shared_that_tells_images_apart_scores_nothing(caption: str) -> None:
    assert CiderD(CORPUS).score(caption, CORPUS[0]) == 0


def test_one_image_tells_nothing() -> None:
    assert CiderD([["a red star"]]).score("a red star", ["a red star"]) == 0
