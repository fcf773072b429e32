"""ANLS case by case, worked out from the Robust Reading Competition's script; DocVQA and InfographicVQA share it."""

from __future__ import annotations

from types import ModuleType

import pytest

from vlmkit.evals.scoring import docvqa, infovqa
from vlmkit.evals.scoring.edit_distance import levenshtein


@pytest.mark.parametrize(
    ("output", "references", "expected"),
    [
        ("12 May 1999", ["12 May 1999"], 1),
        ("12 may 1999", ["12 MAY 1999"], 1),
        ("12  may\n1999", ["12 May 1999"], 1),
        (" yes ", ["yes"], 1),
        # One edit in the length of the longer text.
        ("yess", ["yes"], 3 / 4),
        ("ye", ["yes"], 2 / 3),
        ("yas", ["yes"], 2 / 3),
        ("12 May 1998", ["12 May 1999"], 10 / 11),
        ("12 May", ["12 May 1999"], 6 / 11),
        ("kitten", ["sitting"], 4 / 7),
        ("house", ["horse"], 4 / 5),
        ("ab", ["ba"], 0),
        # The edge: one half counts, less is nothing.
        ("ab", ["ac"], 1 / 2),
        ("abcd", ["abxy"], 1 / 2),
        ("abcde", ["abxyz"], 0),
        ("May", ["12 May 1999"], 0),
        ("cat", ["dog"], 0),
        ("aabb", ["bbaa"], 0),
        # Numbers are texts.
        ("1,000", ["1000"], 4 / 5),
        ("$1,000", ["1000"], 4 / 6),
        ("50%", ["50"], 2 / 3),
        ("5.0", ["5"], 0),
        ("-5", ["5"], 1 / 2),
        ("1e3", ["1000"], 0),
        ("0", ["0"], 1),
        ("0", ["zero"], 0),
        ("(212) 555-0100", ["212 555-0100"], 12 / 14),
        # Nothing against something, and against nothing.
        ("", ["yes"], 0),
        ("", [""], 1),
        ("   ", [""], 1),
        ("yes", [""], 0),
        # The length is of the texts as they came: whitespace softens the error.
        ("  yess", ["yes"], 5 / 6),
        ("cat     ", ["cut"], 7 / 8),
        ("a  b", ["a c"], 3 / 4),
        # The best of several references.
        ("yess", ["no", "yes"], 3 / 4),
        ("no", ["no", "yes"], 1),
        ("maybe", ["no", "yes"], 0),
        ("New York", ["new york city", "NY"], 8 / 13),
        # Punctuation and articles count.
        ("yes.", ["yes"], 3 / 4),
        ("the moon", ["moon"], 1 / 2),
        ("a", ["A"], 1),
        # Unicode: one character, one edit; "ß" has the length of "SS".
        ("cafe", ["café"], 3 / 4),
        ("CAFÉ", ["café"], 1),
        ("東京都", ["東京"], 2 / 3),
        ("straße", ["strasse"], 5 / 7),
        ("groß", ["gros"], 4 / 5),
        ("😀😀", ["😀"], 1 / 2),
    ],
)
def test_similarity(output: str, references: list[str], expected: float) -> None:
    for benchmark in (docvqa, infovqa):
        for scoring in benchmark.VARIANTS:
            assert benchmark.score({"prediction": output, "references": references}, scoring) == pytest.approx(expected)


@pytest.mark.parametrize("benchmark", [docvqa, infovqa], ids=["docvqa", "infovqa"])
def test_aggregate_is_the_mean(benchmark: ModuleType) -> None:
    assert benchmark.VARIANTS == ("official", "lmms-eval")
    assert benchmark.METRIC == "anls"
    assert benchmark.read_answer({"prediction": " 12  May\n", "references": []}) == "12 may"
    scored = [
        {"prediction": "", "references": [], "category": kind, "score": value}
        for kind, value in [("table/list", 1.0), ("table/list", 0.5), ("figure", 0.75)]
    ]
    assert benchmark.aggregate(scored) == {"anls": 0.75, "table/list/anls": 0.75, "figure/anls": 0.75}


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("ab", "ba", 2),
        ("kitten", "sitting", 3),
        ("sunday", "saturday", 3),
        ("flaw", "lawn", 2),
        ("intention", "execution", 5),
    ],
)
def test_levenshtein(first: str, second: str, distance: int) -> None:
    assert levenshtein(first, second) == levenshtein(second, first) == distance
