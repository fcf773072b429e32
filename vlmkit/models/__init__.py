"""Neural networks only: towers, compressors, language models, the VLM.

Importing this package makes vlmkit's checkpoints known to the Auto classes of transformers; ``import vlmkit`` sees to
it that this happens when those are imported.
"""

from vlmkit.models.processor import VLMProcessor
from vlmkit.models.vlm import VLM
from vlmkit.models.vlm_config import VLMConfig

__all__ = ["VLM", "VLMConfig", "VLMProcessor"]
