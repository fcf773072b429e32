"""Trains the embedded tokenizer on the embedded world: ``python -m vlmkit.data.tokenizer.build`` rewrites its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from vlmkit.data.miniworld import MiniWorld
from vlmkit.data.tokenizer import DIRECTORY
from vlmkit.data.tokenizer.english import SENTENCES

VOCAB_SIZE = 2048
SCENES = 3000
PAD, EOS, IMAGE = "<|pad|>", "<|im_end|>", "<image>"
SPECIAL_TOKENS = (PAD, EOS, "<|system|>", "<|user|>", "<|assistant|>", IMAGE)

CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": PAD,
    "eos_token": EOS,
    "extra_special_tokens": {"image_token": IMAGE},
    "padding_side": "right",
    "clean_up_tokenization_spaces": False,
}


def corpus() -> Iterator[str]:
    """Text to train on: captions, questions and answers of training scenes, and general English.

    Questions and answers start with a space, as the chat template sets them.
    """
    world = MiniWorld("train", SCENES)
    for index in range(len(world)):
        for question in world.questions(index):
            yield f" {question.question}"
            yield f" {question.answer}"
        yield from world.captions(index)
    yield from SENTENCES


def train() -> Tokenizer:
    """Byte-level BPE: every text round-trips, and every word of the world's questions and answers is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def build(directory: Path) -> None:
    """Train, and write ``tokenizer.json`` and ``tokenizer_config.json``."""
    (directory / "tokenizer.json").write_text(train().to_str(pretty=False) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(DIRECTORY)
