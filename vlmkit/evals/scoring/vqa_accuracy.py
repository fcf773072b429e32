"""VQA accuracy: an answer is worth a third for each person who gave it, at most 1, over every choice of nine of ten.

The rule of Antol et al., "VQA: Visual Question Answering" (arXiv 1505.00468), and the ways of writing an answer that it
treats as one. VQAv2, VizWiz and TextVQA score by it; they differ in what is normalised, and by which of these steps.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from vlmkit.errors import UserError
from vlmkit.evals.scoring.case import ScoredCase, mean_score

METRIC = "vqa_accuracy"

FULL_CREDIT = 3
"""How many other people must have given an answer for it to be right."""

ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""What is taken out: apostrophes, colons, and signs of percent or currency stay."""

GROUPED_DIGITS = re.compile(r"\d,\d")
GROUPED_DIGITS_EVALAI = re.compile(r"\d,+\d")
"""The same for EvalAI's processor, which takes several commas for one."""

_FINAL_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)
"""The official code passes the flag where ``sub`` takes a count, so that 32 periods go and a 33rd stays."""

_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTED = tuple(_CONTRACTED.split())
"""The contractions of the official table, as it spells them."""


def misspellings(words: Iterable[str], apostrophe: str = "'") -> dict[str, str]:
    """Each of the words by every spelling of it that lacks one apostrophe."""
    return {
        word[:at] + word[at + 1 :]: word for word in words for at, letter in enumerate(word) if letter == apostrophe
    }


CONTRACTIONS: Mapping[str, str] = {**misspellings(CONTRACTED), "somebody'd": "somebodyd"}
"""Spelling to contraction. The last entry is the official table's own, and the wrong way round there as well."""


def one_line(text: str) -> str:
    """Newlines and tabs as spaces, and none of them around the text."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str, grouped_digits: re.Pattern[str] = GROUPED_DIGITS) -> str:
    """Each mark of ``PUNCTUATION`` as a space, or gone wherever it stands once it stands beside a space somewhere.

    A number with grouped digits ("1,000") makes all marks of the text go without a space. A period goes unless a digit
    follows it.
    """
    grouped = grouped_digits.search(text) is not None
    gone = {mark for mark in PUNCTUATION if grouped or f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in gone else " " for mark in PUNCTUATION})
    return _FINAL_PERIOD.sub("", text, count=_MOST_PERIODS)


def plain_words(text: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """Lower case, number words up to ten as digits, no articles, contractions with their apostrophe, single spaces."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in ARTICLES)


def evalai_answer(text: str) -> str:
    """An answer as the processor of M4C (MMF's ``EvalAIAnswerProcessor``) leaves it.

    Before the steps above, commas and question marks go and a genitive's 's becomes a word of its own.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(without_punctuation(one_line(text)))


def agreement(answer: str, references: Sequence[str]) -> float:
    """The mean, over leaving out one of the references, of min(1, those among the others that equal the answer / 3).

    Of ten references 1, 2 or 3 equal ones give 0.3, 0.6 or 0.9, and 4 or more give 1. A single reference always gives
    0, since none is left to compare with; two or three that agree give 1/3 or 2/3.

    Raises:
        UserError: If there is no reference.
    """
    if not references:
        raise UserError('a case has no references, and VQA accuracy counts people: list their answers in "references"')
    equal = [reference == answer for reference in references]
    return sum(min(1.0, (sum(equal) - left_out) / FULL_CREDIT) for left_out in equal) / len(references)


def mean_by_answer_type(scored: Sequence[ScoredCase]) -> dict[str, float]:
    """``vqa_accuracy``, the mean of all (at least one) cases, and that of each ``category`` there is, by its name."""
    by_type: defaultdict[str, list[ScoredCase]] = defaultdict(list)
    for case in scored:
        if category := case.get("category"):
            by_type[category].append(case)
    return {METRIC: mean_score(scored), **{name: mean_score(by_type[name]) for name in sorted(by_type)}}
