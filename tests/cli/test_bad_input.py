"""Bad input on the command line: one sentence on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from vlmkit.cli.app import main
from vlmkit.recipe import load_recipe
from vlmkit.runs import RunDirectory


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and stderr of ``vlmkit ARGUMENTS``, white space folded."""
    monkeypatch.setattr(sys, "argv", ["vlmkit", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), " ".join(capsys.readouterr().err.split())


PRETRAIN = ["pretrain-superclass", "--out", "out"]
TRAIN = ["train-vlm", "--out", "out", "--vision-tower", "ViT-mini-8-64"]

CASES: dict[str, tuple[list[str], list[str]]] = {
    "missing shards": ([*PRETRAIN, "--data", "wds:nowhere/*.tar"], ["nowhere"]),
    "empty folder of shards": ([*PRETRAIN, "--data", "wds:empty"], ["empty"]),
    "missing conversations": ([*TRAIN, "--data", "llava:none.json"], ["none.json"]),
    "conversations that are no JSON": ([*TRAIN, "--data", "llava:broken.json"], ["broken.json"]),
    "a cut-off tar": ([*PRETRAIN, "--data", "wds:cut.tar"], ["cut.tar", "allow_truncated"]),
    "an unknown kind of source": ([*PRETRAIN, "--data", "tfds:imagenet"], ["tfds", "wds"]),
    "a typo in the recipe": ([*PRETRAIN, "--recipe", "typo.yaml"], ["optm", "train.optim"]),
    "a wrong type": ([*PRETRAIN, "--set", "train.optim.lr=fast"], ["train.optim.lr", "'fast'"]),
    "an impossible value": ([*PRETRAIN, "--max-bad-fraction", "2"], ["data.max_bad_fraction"]),
    "a missing recipe": ([*PRETRAIN, "--recipe", "none.yaml"], ["none.yaml"]),
    "another command's recipe": ([*TRAIN, "--recipe", "typo.yaml"], ["pretrain-superclass"]),
    "no run to resume": (["pretrain-superclass", "--resume", "empty"], ["empty", "not a run directory"]),
    "a tower that is no run": ([*TRAIN, "--vision-tower", "empty"], ["empty", "not a run directory"]),
    "an unfinished run as tower": ([*TRAIN, "--vision-tower", "half"], ["half", "has not finished"]),
    "a run of another kind": (["eval", "vlm"], ["has not finished"]),
    "a run that is none": (["eval", "empty"], ["not a run directory"]),
    "a benchmark without data": (["eval", "vlm", "-t", "gqa"], ["no data of gqa", "`vlmkit eval --prepare gqa`"]),
    "a benchmark that there is not": (["eval", "vlm", "-t", "popes"], ["'popes'", "did you mean pope"]),
    "a benchmark to fetch that there is not": (["eval", "--prepare", "popes"], ["'popes'", "did you mean pope"]),
    "a run to fetch data for": (["eval", "vlm", "--prepare", "pope"], ["--prepare fetches data and scores nothing"]),
    "a revision to evaluate": (["eval", "vlm", "--revision", "main"], ["--revision belongs to --prepare"]),
    "an unknown tower": ([*TRAIN, "--vision-tower", "ViT-X-16"], ["ViT-X-16", "ViT-L-16"]),
    "a token count that does not tile": ([*TRAIN, "--tokens", "5"], ["1, 4, 16, 64"]),
    "token counts that are none": ([*TRAIN, "--tokens", "1,four"], ["1,four", "1,4,16"]),
    "several token counts that do not tile": ([*TRAIN, "--tokens", "1,5"], ["1, 4, 16, 64"]),
    "several token counts for one cell size": (
        [*TRAIN, "--tokens", "1,4", "--compressor", "quecc"],
        ["1, 4", "avgpool"],
    ),
    "predictions that are not there": (["eval", "--score-file", "none.json", "--benchmark", "pope"], ["none.json"]),
    "predictions that are no JSON": (["eval", "--score-file", "broken.json", "--benchmark", "pope"], ["broken.json"]),
    "predictions for an unknown benchmark": (["eval", "--score-file", "broken.json", "--benchmark", "pop"], ["pope"]),
    "an image that is not there": (["ask", "vlm", "none.png", "what"], ["none.png"]),
    "an unfinished run to ask": (["ask", "vlm", "what"], ["has not finished"]),
    "an unknown language model": ([*TRAIN, "--llm", "qwen2-7b"], ["qwen2-7b", "qwen2.5-7b"]),
    "a language model that is not there": ([*TRAIN, "--llm", "./nowhere/model"], ["--llm tiny", "--weights random"]),
    "a language model that does not fit": ([*TRAIN, "--llm", "72b"], ["GB free", "--llm tiny", "--dry-run"]),
    "an unknown compressor": ([*TRAIN, "--compressor", "zip"], ["compressor.name", "avgpool"]),
    "a directory of something else": (["pretrain-superclass", "--out", "foreign"], ["foreign", "not empty"]),
    "a budget that is none": (["frontier", "--budget", "lots"], ["lots", "5e12"]),
    "a budget too small": (["frontier", "--budget", "10"], ["cheapest", "FLOPs"]),
    "--set without a value": ([*PRETRAIN, "--set", "seed"], ["seed", "="]),
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with everything the cases name."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("foreign").mkdir()
    Path("foreign/thesis.txt").write_text("years of work")
    Path("broken.json").write_text('[{"id": ')
    Path("typo.yaml").write_text("command: pretrain-superclass\ntrain: {optm: {lr: 1}}\n")
    Path("cut.tar").write_bytes(b"\0" * 100)
    RunDirectory("half").prepare(load_recipe("pretrain-superclass", None, {}), {}, {})
    RunDirectory("vlm").prepare(load_recipe("train-vlm", None, {}), {}, {})
    _cut_tar(Path("cut.tar"))
    return tmp_path


def _cut_tar(path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(path, "w") as tar:
        for key in ("a", "b"):
            for suffix, content in (("jpg", b"x" * 3000), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[:6500])


@pytest.mark.parametrize("case", CASES)
def test_is_refused_in_one_sentence_and_leaves_no_trace(
    case: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = CASES[case]
    before = sorted(path for path in desk.rglob("*") if "cache" not in path.parts)
    code, error = run(arguments, monkeypatch, capsys)
    assert code == 2, error
    sentence = error[error.index("Error: ") :]
    assert "Traceback" not in error and sentence.count("Error: ") == 1
    assert all(word in sentence for word in words), sentence
    assert sorted(path for path in desk.rglob("*") if "cache" not in path.parts) == before


def test_the_run_that_is_there_is_not_touched_by_another_recipe(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (desk / "half" / "recipe.yaml").read_bytes()
    code, error = run(["pretrain-superclass", "--out", "half", "--seed", "7"], monkeypatch, capsys)
    assert code == 2 and "seed: 0 -> 7" in error
    assert (desk / "half" / "recipe.yaml").read_bytes() == before


def test_models_lists_every_entry_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vlmkit import registry

    monkeypatch.setattr(sys, "argv", ["vlmkit", "models", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    listed = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in listed["llms"]} == {facts.name for facts in registry.LLMS.values()}
    assert {entry["name"] for entry in listed["compressors"]} == set(registry.COMPRESSORS)


def test_a_dry_run_of_7b_plans_offline_and_writes_nothing(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(desk.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["vlmkit", "train-vlm", "--llm", "7b", "--tokens", "1", "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        main()
    plan = " ".join(capsys.readouterr().err.split())
    assert not stop.value.code
    assert all(words in plan for words in ("qwen1.5-7b", "7.72 B", "1 of 64 patches", "GB free", "miniworld:train"))
    assert sorted(desk.rglob("*")) == before
