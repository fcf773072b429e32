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
from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from measuring import write_results
from open_clip.tokenizer import SimpleTokenizer

from vlmkit.data.caption_text import repair
from vlmkit.data.caption_tokenizers import ClipTokenizer, WordTokenizer
from vlmkit.data.corpus import captions_at, count_corpus
from vlmkit.data.sources.opener import open_captions
from vlmkit.pipelines.timing import interleaved_seconds

PEER = "open_clip SimpleTokenizer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="miniworld:train?scenes=2000", help="caption source")
    parser.add_argument("--captions", type=int, default=5000, help="captions of one measurement, at most")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    source = open_captions(args.data)
    texts = list(islice(chain.from_iterable(captions_at(source, i) for i in range(len(source))), args.captions))

    peer, clip = SimpleTokenizer(), ClipTokenizer()
    assert (peer(texts).numpy() == clip.encode(texts)).all(), "the tokenizers differ"
    with tempfile.TemporaryDirectory() as cache:
        word = WordTokenizer.from_corpus(source, 40_000, 77, Path(cache))
    functions = {
        PEER: lambda: peer(texts),
        "clip, text ids": lambda: clip.encode(texts),
        "clip, bags": lambda: clip.bags(texts),
        "clip, bags one by one": lambda: [clip.bag(text) for text in texts],
        "word, bags": lambda: word.bags(texts),
    }
    seconds = interleaved_seconds(
        {name: partial(unseen, function) for name, function in functions.items()}, args.repeats, torch.device("cpu")
    )
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        counts = count_corpus(source, clip, Path(cache))
        corpus_rate = counts.num_documents / (time.perf_counter() - start)
    rates = {name: [len(texts) / taken for taken in times] for name, times in seconds.items()}
    rows = [
        {
            "tokenizer": name,
            "captions/s": of_name,
            "of open_clip's": statistics.median(of_name) / statistics.median(rates[PEER]),
        }
        for name, of_name in rates.items()
    ]
    words = statistics.mean(len(text.split()) for text in texts)
    about = vars(args) | {
        "measured": f"{len(texts)} captions of {words:.1f} words on average",
        "corpus pass with clip, reading included": f"{corpus_rate:,.0f} captions/s over {counts.num_documents}",
    }
    files = write_results("caption_tokenizers", torch.device("cpu"), about, rows)
    print(files[-1].read_text() + "\nwritten: " + ", ".join(map(str, files)))


def unseen(function: Callable[[], object]) -> None:
    """Call it as with captions never seen before."""
    repair.cache_clear()
    function()


if __name__ == "__main__":
    main()
