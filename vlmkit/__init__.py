"""vlmkit: pretrain vision backbones by classifying captions, build VLMs with few visual tokens, choose what to deploy.

The package itself imports nothing heavy; :mod:`vlmkit.pipelines` holds what the commands do, callable from Python.
Beside it, the Auto classes of transformers load vlmkit's checkpoints, in whatever order the two are imported::

    import vlmkit
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained("runs/my-vlm/model")
    processor = AutoProcessor.from_pretrained("runs/my-vlm/model")
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__version__ = "0.1.0"

_AUTO_CLASSES = frozenset({"transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto"})


class _Registration(MetaPathFinder):
    """Imports :mod:`vlmkit.models`, which registers them, once transformers has Auto classes of models or processors.

    transformers offers no entry point for this, and importing the models here would make ``vlmkit --help`` wait
    for torch.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _AUTO_CLASSES:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            importlib.import_module("vlmkit.models")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _AUTO_CLASSES.isdisjoint(sys.modules):
    sys.meta_path.insert(0, _Registration())
else:
    importlib.import_module("vlmkit.models")
