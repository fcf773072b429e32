"""nn.Modules only: vision towers, language models, compressors, and the vision-language model that joins them."""

from __future__ import annotations


def register_auto() -> None:
    """Make ``AutoConfig``, ``AutoModel`` and ``AutoModelForImageTextToText`` of transformers know vlmkit's checkpoints.

    Importing :mod:`vlmkit.models.vlm` does it; this function is that import under a name that says why.
    """
    import vlmkit.models.vlm  # noqa: F401
