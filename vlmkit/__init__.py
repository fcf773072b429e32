"""vlmkit: pretrain vision backbones by classifying captions, build VLMs with few visual tokens, choose what to deploy.

The package itself imports nothing heavy; :mod:`vlmkit.pipelines` holds what the commands do, callable from Python, and
importing :mod:`vlmkit.models` makes its checkpoints loadable through the Auto classes of transformers.
"""

__version__ = "0.1.0"
