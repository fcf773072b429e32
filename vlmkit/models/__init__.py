"""Neural networks only: towers, compressors, language models, the VLM.

Importing this package makes vlmkit's checkpoints known to the Auto classes of transformers::

    import vlmkit.models
    model = AutoModelForImageTextToText.from_pretrained("runs/my-vlm/model")
"""

from vlmkit.models.processor import VLMProcessor
from vlmkit.models.vlm import VLM, VLMConfig

__all__ = ["VLM", "VLMConfig", "VLMProcessor"]
