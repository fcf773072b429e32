"""Captions tokenised per second: vlmkit's compiled tokenizers against open_clip's SimpleTokenizer, in one run.

    python benchmarks/caption_tokenizers.py [--data SOURCE] [--captions 5000] [--repeats 7]

Each repeat times every tokenizer once on the same captions, so that a busy machine slows all alike; the table gives
medians and their ratios to open_clip. One thread, unless TOKENIZERS_PARALLELISM=true.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from open_clip.tokenizer import SimpleTokenizer

from vlmkit.data.caption_text import repair
from vlmkit.data.caption_tokenizers import ClipTokenizer, WordTokenizer
from vlmkit.data.corpus import captions_at, count_corpus
from vlmkit.data.sources import open_captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="miniworld:train?scenes=2000", help="caption source")
    parser.add_argument("--captions", type=int, default=5000, help="captions of one measurement, at most")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    source = open_captions(arguments.data)
    texts = list(islice(chain.from_iterable(captions_at(source, i) for i in range(len(source))), arguments.captions))

    peer, clip = SimpleTokenizer(), ClipTokenizer()
    assert (peer(texts).numpy() == clip.encode(texts)).all(), "the tokenizers differ"
    with tempfile.TemporaryDirectory() as cache:
        word = WordTokenizer.from_corpus(source, 40_000, 77, Path(cache))
    seconds = measure(
        {
            "open_clip SimpleTokenizer": lambda: peer(texts),
            "clip, text ids": lambda: clip.encode(texts),
            "clip, bags": lambda: clip.bags(texts),
            "clip, bags one by one": lambda: [clip.bag(text) for text in texts],
            "word, bags": lambda: word.bags(texts),
        },
        arguments.repeats,
    )
    words = statistics.mean(len(text.split()) for text in texts)
    print(f"{len(texts)} captions of {words:.1f} words on average from {arguments.data}, {arguments.repeats} repeats")
    reference = statistics.median(seconds["open_clip SimpleTokenizer"])
    print(f"{'tokenizer':28}{'captions/s':>12}{'ratio':>8}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:28}{len(texts) / middle:>12,.0f}{reference / middle:>8.2f}")
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        counts = count_corpus(source, clip, Path(cache))
        rate = counts.num_documents / (time.perf_counter() - start)
    print(f"corpus pass with clip, reading the captions included: {rate:,.0f} captions/s over {counts.num_documents}")


def measure(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, Sequence[float]]:
    """Seconds of each call of each function, the functions taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            repair.cache_clear()  # as with captions never seen before
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
