"""Zero-shot classification: an image belongs to the class whose name, put into sentences, its text tower finds nearest.

The sentences are those of OpenAI's CLIP for ImageNet (80 of them, from open_clip); a class is the mean of their
normalised embeddings, normalised again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from torch.nn.functional import normalize

from vlmkit.data.sources.opener import LabelledSource
from vlmkit.errors import UserError
from vlmkit.evals.probes.features import read_out
from vlmkit.evals.probes.result import ProbeResult
from vlmkit.evals.progress import OnProgress

Tokenize = Callable[[Sequence[str]], np.ndarray | torch.Tensor]
"""Sentences to token ids [B, context]."""

_WNID = re.compile(r"n\d{8}")
"""WordNet's number of a noun, by which ImageNet's folders are named."""


class ImageTextModel(Protocol):
    """Images and texts in one space."""

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> unit vectors [B, E]."""
        ...

    def encode_text(self, text_ids: torch.Tensor) -> torch.Tensor:
        """int64 [B, context] -> unit vectors [B, E]."""
        ...


def zero_shot(
    model: ImageTextModel,
    tokenize: Tokenize,
    image_size: int,
    source: LabelledSource,
    *,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    on_progress: OnProgress | None = None,
) -> list[ProbeResult]:
    """Accuracy over each attribute of ``source``, among all its classes; the model is on ``device``.

    Raises UserError where more than one image in a hundred is bad, and as :func:`words_of` does.
    """
    classifiers = {
        attribute: class_embeddings(model, tokenize, words_of(names), device)
        for attribute, names in source.classes.items()
    }
    images = read_out(
        [model.encode_image], image_size, source, batch_size=batch_size, device=device, on_progress=on_progress
    )
    return [
        ProbeResult.of_scores(images, attribute, images.features[0] @ classifier.T, source.classes[attribute])
        for attribute, classifier in classifiers.items()
        if images.having(attribute)
    ]


def words_of(names: Sequence[str]) -> list[str]:
    """What sentences call the classes ``names``: the same, underscores read as spaces.

    ImageNet's 1000 WordNet numbers become open_clip's names, which are in the order of the numbers. Raises UserError
    for numbers that are not 1000: which of ImageNet's classes they are is not known then.
    """
    if not all(_WNID.fullmatch(name) for name in names):
        return [name.replace("_", " ") for name in names]
    if len(set(names)) != len(IMAGENET_CLASSNAMES):
        raise UserError(
            f"The classes are called by WordNet numbers ({names[0]}, ...), which a text tower cannot read; names are "
            f"known for the {len(IMAGENET_CLASSNAMES)} of ImageNet together, but there are {len(names)} here: "
            "name the folders by words."
        )
    words = dict(zip(sorted(names), IMAGENET_CLASSNAMES, strict=True))
    return [words[name] for name in names]


@torch.inference_mode()
def class_embeddings(
    model: ImageTextModel, tokenize: Tokenize, names: Sequence[str], device: torch.device | str = "cpu"
) -> np.ndarray:
    """One unit vector for each of the classes that sentences call ``names``: float32 [C, E]."""
    embeddings = []
    for name in names:
        sentences = [template(name) for template in OPENAI_IMAGENET_TEMPLATES]
        texts = model.encode_text(torch.as_tensor(tokenize(sentences)).to(device))
        embeddings.append(normalize(texts.float().mean(dim=0), dim=0).cpu().numpy())
    return np.stack(embeddings)
