"""Exporting a run: the directory appears whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

from vlmkit.config import PretrainRecipe
from vlmkit.errors import UserError
from vlmkit.models.open_clip_layout import config_from_facts, export_open_clip
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower
from vlmkit.pipelines.export import export_run
from vlmkit.registry import VisionTowerFacts
from vlmkit.runs import RunDirectory

FACTS = VisionTowerFacts("test", width=32, layers=2, heads=2, patch_size=8, image_size=32)


def finished_run(path: Path, pooling: str = "avg") -> VisionTower:
    with seeded(1):
        tower = VisionTower(config_from_facts(FACTS, pooling=pooling)).eval()
    run = RunDirectory(path)
    run.prepare(PretrainRecipe(), {}, {})
    with run.writing_model() as scratch:
        export_open_clip(tower, scratch)
        (scratch / "superclass_head.safetensors").write_bytes(b"not the tower's")
    return tower


@torch.no_grad()
def test_every_layout_gives_the_runs_features(tmp_path: Path) -> None:
    import timm
    from transformers import CLIPVisionModel

    tower = finished_run(tmp_path / "run")
    pixels = torch.randn(2, 3, 32, 32)
    expected = tower.pooled(pixels)
    for layout in ("open_clip", "transformers", "timm"):
        assert export_run(tmp_path / "run", layout, tmp_path / "out" / layout) == tmp_path / "out" / layout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["open_clip", "timm", "transformers"]
    assert len(list((tmp_path / "out" / "open_clip").iterdir())) == 2

    model = open_clip.create_model(f"local-dir:{tmp_path}/out/open_clip").eval()
    assert torch.equal(model.encode_image(pixels), expected)
    vision = CLIPVisionModel.from_pretrained(tmp_path / "out" / "transformers").eval()
    patches = vision.post_layernorm(vision(pixels).last_hidden_state)[:, 1:]
    torch.testing.assert_close(patches.mean(1), expected, rtol=1e-5, atol=1e-5)
    network = timm.create_model(f"local-dir:{tmp_path}/out/timm", pretrained=True).eval()
    torch.testing.assert_close(network(pixels), expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    finished_run(tmp_path / "run", pooling="map")
    with pytest.raises(UserError, match="export it as open_clip"):
        export_run(tmp_path / "run", "timm", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_only_an_empty_place_and_a_finished_run_will_do(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    export_run(tmp_path / "run", "open_clip", tmp_path / "out")
    for taken in (tmp_path / "out", tmp_path / "run" / "recipe.yaml"):
        with pytest.raises(UserError, match="exists and is not empty"):
            export_run(tmp_path / "run", "open_clip", taken)
    with pytest.raises(UserError, match="no weights to export"):
        export_run(Path("ViT-B-16"), "open_clip", tmp_path / "other")
    RunDirectory(tmp_path / "unfinished").prepare(PretrainRecipe(), {}, {})
    with pytest.raises(UserError, match="not finished"):
        export_run(tmp_path / "unfinished", "open_clip", tmp_path / "other")
    assert not (tmp_path / "other").exists()
