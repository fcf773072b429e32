"""Captions as bags of tokens: CLIP's byte-pair encoding, and images with their bags as training items and batches."""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import ftfy
import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vlmkit.config import AugmentConfig
from vlmkit.contracts import Batch, Source
from vlmkit.data.images import EvalTransform, TrainTransform, decode_image
from vlmkit.data.order import stable_hash
from vlmkit.data.samples import BadSample, CaptionSample
from vlmkit.errors import UserError

PAD_LABEL = -1
"""Fills up rows of ``label_ids``; no token has this id."""

START, END = "<start_of_text>", "<end_of_text>"

_NUM_MERGES = 49152 - 256 - 2
# The long s is there because the original pattern ignores case.
_WORDS = r"""'[sſ]|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"""


class CaptionTokenizer:
    """CLIP's byte-pair encoding (49408 ids), equal to open_clip's ``SimpleTokenizer`` but compiled.

    Read from the vocabulary file that open_clip carries, without importing open_clip. A caption is repaired (ftfy),
    its HTML entities resolved, its white space collapsed, lower-cased, encoded between start and end ids, and cut to
    ``context_length`` ids, the last of which is then the end id.
    """

    def __init__(self, context_length: int = 77) -> None:
        if context_length < 3:
            raise UserError(f"A context of {context_length} ids leaves no room for a caption; use 3 or more, e.g. 77.")
        self.context_length = context_length
        self._tokenizer = _clip_bpe()
        self._tokenizer.enable_truncation(context_length)
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.special_ids = frozenset(self._tokenizer.token_to_id(token) for token in (START, END))

    def bag(self, caption: str) -> np.ndarray:
        """Distinct ids of the caption's tokens inside the context, ascending, special ids left out: int64 [L]."""
        ids = set(self._tokenizer.encode(_clean(caption)).ids) - self.special_ids
        return np.array(sorted(ids), dtype=np.int64)

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Ids of each caption between start and end, padded with 0: int64 [B, context_length]."""
        rows = np.zeros((len(captions), self.context_length), dtype=np.int64)
        for row, encoding in zip(rows, self._tokenizer.encode_batch([_clean(text) for text in captions]), strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return rows

    def save(self, directory: str | Path) -> None:
        """Write ``tokenizer.json`` and its config, which ``transformers.AutoTokenizer`` loads, into ``directory``.

        The file cleans captions itself, except for what ftfy and HTML entities take.
        """
        portable = Tokenizer.from_str(self._tokenizer.to_str())
        portable.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
        )
        portable.save(str(Path(directory) / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.context_length,
            "bos_token": START,
            "eos_token": END,
        }
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _clean(caption: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(text.split()).lower()


def _clip_bpe() -> Tokenizer:
    """The vocabulary in CLIP's order: bytes, bytes that end a word, merges by rank, start and end."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UserError("open_clip_torch is not installed, which carries the caption vocabulary; pip install it.")
    with gzip.open(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : 1 + _NUM_MERGES])]
    alphabet = _byte_characters()
    tokens = alphabet + [character + "</w>" for character in alphabet] + [left + right for left, right in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return tokenizer


def _byte_characters() -> list[str]:
    """The printable stand-ins of the 256 bytes, in CLIP's order: printable bytes first, then all others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + extra) for extra in range(256 - len(printable))]


class CaptionLoader:
    """Loads item ``(index, epoch)`` of a caption source: uint8 pixels [3, size, size] and a bag of token ids [L].

    The caption of a sample with several is drawn, like the augmentation, from (seed, index, epoch); without
    ``augment`` the image is resized and centre-cropped. Raises BadSample for images and captions that are of no use.
    """

    def __init__(
        self,
        source: Source[CaptionSample],
        tokenizer: CaptionTokenizer,
        image_size: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.seed = seed
        self._eval = EvalTransform(image_size)
        self._train = TrainTransform(image_size, augment) if augment else None

    def __call__(self, index: int, epoch: int) -> tuple[torch.Tensor, np.ndarray]:
        sample = self.source[index]
        generator = torch.Generator().manual_seed(stable_hash(self.seed, index, epoch))
        choice = int(torch.randint(len(sample.captions), (), generator=generator))
        bag = self.tokenizer.bag(sample.captions[choice])
        if not bag.size:
            raise BadSample(f"caption {sample.captions[choice]!r} holds no tokens")
        image = decode_image(sample.image)
        return (self._train(image, generator) if self._train else self._eval(image)), bag


def collate_captions(items: Sequence[tuple[torch.Tensor, np.ndarray]]) -> Batch:
    """``pixel_values`` uint8 [B, 3, S, S] and ``label_ids`` int64 [B, L], rows filled up with PAD_LABEL."""
    images, bags = zip(*items, strict=True)
    label_ids = torch.full((len(bags), max(bag.size for bag in bags)), PAD_LABEL, dtype=torch.int64)
    for row, bag in zip(label_ids, bags, strict=True):
        row[: bag.size] = torch.from_numpy(bag)
    return {"pixel_values": torch.stack(images), "label_ids": label_ids}
