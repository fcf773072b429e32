"""Runs recipes one after another, for tests that start it under torchrun: ``run_jobs.py '[[recipe, out], ...]'``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.pipelines.pretrain import pretrain
from vlmkit.pipelines.train_vlm import train_vlm
from vlmkit.training.distributed import teardown

if __name__ == "__main__":
    for recipe, out in json.loads(sys.argv[1]):
        if recipe["command"] == "pretrain-superclass":
            pretrain(PretrainRecipe.model_validate(recipe), Path(out))
        else:
            train_vlm(VLMRecipe.model_validate(recipe), Path(out))
    teardown()
