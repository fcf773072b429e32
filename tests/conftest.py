"""Shared fixtures, and the settings every test process starts with."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported anywhere: two cores are the floor, and no test may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vlmkit.scaling.family_law import FamilyLaw

REPOSITORY = Path(__file__).resolve().parents[1]


@cache
def _fit_once(name: str, rows: tuple[Any, ...], law: Any, loss: Any) -> FamilyLaw:
    from vlmkit.scaling.family_law import fit_family

    return fit_family(name, rows, law, loss)


@pytest.fixture
def laws_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of what is asked of a law share its fit and bootstrap, which take most of an answer's time."""
    monkeypatch.setattr(
        "vlmkit.scaling.frontier.fit_family", lambda name, rows, law, loss: _fit_once(name, tuple(rows), law, loss)
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature caches and indexes of a test go to its own directory."""
    monkeypatch.setenv("VLMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shared_data() -> Path:
    """The small real data sets beside the checkout; tests that use them skip where they are absent."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real sample data are not beside this checkout (../shared/data)")
    return path
