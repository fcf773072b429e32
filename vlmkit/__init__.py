"""vlmkit: pretrain vision backbones by classifying captions, build VLMs with few visual tokens, choose what to deploy.

Importing the package makes its checkpoints known to the Auto classes of transformers without importing torch:
see :mod:`vlmkit.models` for the registration itself.
"""

__version__ = "0.1.0"
