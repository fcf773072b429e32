"""Small finished runs that several tests read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_recipes import pretrain_recipe, vlm_recipe


@pytest.fixture(scope="session")
def tower_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SuperClass run."""
    from vlmkit.pipelines.pretrain import pretrain

    out = tmp_path_factory.mktemp("tower") / "run"
    pretrain(pretrain_recipe(), out)
    return out


@pytest.fixture(scope="session")
def vlm_run(tower_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished VLM run of both stages on that tower."""
    from vlmkit.pipelines.train_vlm import train_vlm

    out = tmp_path_factory.mktemp("vlm") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        train_vlm(vlm_recipe(tower_run), out)
    return out
