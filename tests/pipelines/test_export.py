"""Exporting a run: the directory appears whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

from vlmkit.config import PretrainRecipe, TextTowerConfig
from vlmkit.errors import UserError
from vlmkit.models.contrastive import ContrastiveHead, text_config
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
        export_run(tmp_path / "run", layout, tmp_path / "out" / layout)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["open_clip", "timm", "transformers"]
    files = sorted(path.name for path in (tmp_path / "out" / "open_clip").iterdir())
    assert files == ["README.md", "open_clip_config.json", "open_clip_model.safetensors"]

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


@torch.no_grad()
def test_what_a_layout_cannot_say_is_said_beside_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import CLIPVisionModel

    tower = finished_run(tmp_path / "run")
    note = export_run(tmp_path / "run", "transformers", tmp_path / "out")
    assert capfd.readouterr() == ("", ""), "no progress bar of the library's"
    assert note and note in (tmp_path / "out" / "README.md").read_text()
    model, pixels = CLIPVisionModel.from_pretrained(tmp_path / "out").eval(), torch.randn(2, 3, 32, 32)
    line = note.splitlines()[-1].strip()
    features = eval(line, {"model": model, "outputs": model(pixels)})
    torch.testing.assert_close(features, tower.pooled(pixels), rtol=1e-5, atol=1e-5)

    assert "text tower is a placeholder" in (export_run(tmp_path / "run", "open_clip", tmp_path / "clip") or "")
    assert export_run(tmp_path / "run", "timm", tmp_path / "timm") is None
    assert not (tmp_path / "timm" / "README.md").exists()
    finished_run(tmp_path / "tok", pooling="tok")
    assert export_run(tmp_path / "tok", "transformers", tmp_path / "tok-out") is None


def test_a_trained_text_tower_is_no_placeholder(tmp_path: Path) -> None:
    tower = finished_run(tmp_path / "run")
    text_cfg, embed_dim = text_config(tower.width, TextTowerConfig(width=16, layers=1, heads=2))
    (tmp_path / "clip").mkdir()
    export_open_clip(tower, tmp_path / "clip", text=ContrastiveHead(tower.width, text_cfg, embed_dim).text_part())
    assert export_run(tmp_path / "clip", "open_clip", tmp_path / "out") is None
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_an_empty_working_directory_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(tmp_path / "run")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_run(tmp_path / "run", "timm", Path("."))
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(UserError, match="not empty"):
        export_run(tmp_path / "run", "timm", Path("."))


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    with pytest.raises(UserError, match="cannot be written"):
        export_run(tmp_path / "run", "timm", tmp_path / "run" / "recipe.yaml" / "out")
