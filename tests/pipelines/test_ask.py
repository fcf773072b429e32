"""``vlmkit ask``: about images together or each by itself, piped, in a conversation; and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmkit.cli.app import app, main
from vlmkit.data.samples import Turn
from vlmkit.errors import UserError
from vlmkit.pipelines.ask import AskSettings, Assistant, Dialogue, split_images


class Terminal(io.StringIO):
    """Input that is typed."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, colour in (("red.png", 200), ("grey.png", 90)):
        Image.fromarray(np.full((40, 60, 3), colour, np.uint8)).save(name)
    return ["red.png", "grey.png"]


@pytest.fixture
def assistant(vlm_run: Path) -> Assistant:
    return Assistant(vlm_run, AskSettings(max_new_tokens=5, device="cpu"))


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    app(["ask", *arguments, "--max-new-tokens", "5", "--device", "cpu"], standalone_mode=False)
    return capsys.readouterr().out


def test_words_are_images_and_then_a_question(images: list[str]) -> None:
    assert split_images([*images, "what changed?"]) == ([Path(image) for image in images], "what changed?")
    assert split_images(images) == ([Path(image) for image in images], None)
    assert split_images(["is it in red.png"]) == ([], "is it in red.png")
    assert split_images([]) == ([], None)
    for words in (["none.png"], ["none.png", "what"], ["what", "red.png"]):
        with pytest.raises(UserError, match=r"no image (none\.png|what)"):
            split_images(words)


@pytest.mark.parametrize("damage", ['{"num_visual_tokens": 4}', "{"])
def test_a_model_that_cannot_be_read_is_a_sentence(vlm_run: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(vlm_run, tmp_path / "run")
    config = tmp_path / "run" / "model" / "config.json"
    merged = {**json.loads(config.read_text()), **json.loads(damage)} if damage.endswith("}") else damage
    config.write_text(merged if isinstance(merged, str) else json.dumps(merged))
    with pytest.raises(UserError, match=r"cannot be read .*restore it"):
        Assistant(tmp_path / "run", AskSettings(device="cpu"))


def test_each_image_is_answered_as_it_is_alone(assistant: Assistant, images: list[str]) -> None:
    paths = [Path(image) for image in images]
    questions = ["how many red ones", "read the sign"]
    together = list(assistant.ask(paths, questions, each=True))
    alone = [reply for path in paths for question in questions for reply in assistant.ask([path], [question])]
    assert together == alone
    assert [reply.images for reply in together] == [("red.png",)] * 2 + [("grey.png",)] * 2
    (both,) = assistant.ask(paths, questions[:1])
    assert both.images == ("red.png", "grey.png") and both.visual_tokens == 4


def test_a_dialogue_asks_with_all_that_was_said(
    assistant: Assistant, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dialogue, heard, prompts = Dialogue(assistant, [Path("red.png")]), [], []
    encoder = assistant._answerer.encoder
    prompt = encoder.prompt
    monkeypatch.setattr(encoder, "prompt", lambda *args: (prompts.append(args[0::3]), prompt(*args))[1])
    first = dialogue.say("how many", heard.append)
    assert "".join(heard).strip() == first
    second = dialogue.say("and what shape")
    turns = [Turn("how many", first), Turn("and what shape", second)]
    assert dialogue.turns == turns and prompts[1] == ("and what shape", dialogue.turns)
    ids = prompt("and what shape", 1, "x", turns[:1]).ids
    text = encoder.tokenizer.decode(ids)
    assert text.index("how many") < text.index("and what shape") and ids.count(encoder.image_token_id) == 4


def test_lines_tabs_and_json(vlm_run: Path, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = said([str(vlm_run), "red.png", "how many"], capsys).splitlines()
    lines = said([str(vlm_run), *images, "how many", "--each"], capsys).splitlines()
    assert lines[0] == f"red.png\t{answer}" and lines[1].startswith("grey.png\t")
    (reply,) = json.loads(said([str(vlm_run), "red.png", "how many", "--json"], capsys))
    assert reply == {"images": ["red.png"], "question": "how many", "answer": answer, "visual_tokens": 4}


def test_questions_from_a_pipe_stand_alone(
    vlm_run: Path, images: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("how many\n\nread the sign\n"))
    piped = said([str(vlm_run), "red.png"], capsys).splitlines()
    assert piped == [said([str(vlm_run), "red.png", q], capsys).strip("\n") for q in ("how many", "read the sign")]


def test_a_conversation_goes_on_after_what_is_refused(
    vlm_run: Path, images: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["/image none.png", "/tokens 9", "/what", "", "/image grey.png", "/tokens 4", "how many", "/quit"]
    monkeypatch.setattr("builtins.input", lambda prompt: typed.pop(0))
    monkeypatch.setattr(sys, "stdin", Terminal())
    app(["ask", str(vlm_run), "red.png", "--max-new-tokens", "5"], standalone_mode=False)
    output = capsys.readouterr()
    for words in ("none.png cannot be read", "trained for 4", "There is no /what"):
        assert words in " ".join(output.err.split())
    assert output.out.strip() == said([str(vlm_run), "grey.png", "how many"], capsys).strip()


def test_it_answers_after_the_align_stage_and_says_where(
    vlm_run: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said([str(vlm_run / "align"), "red.png", "how many"], capsys)
    shutil.copytree(vlm_run, tmp_path / "half", ignore=lambda path, names: {"model"} if path == str(vlm_run) else set())
    with pytest.raises(UserError, match=r"ask .*half/align"):
        Assistant(tmp_path / "half", AskSettings())


def test_what_cannot_be_asked_is_refused_in_a_sentence(
    vlm_run: Path,
    tower_run: Path,
    images: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("broken.png").write_bytes(b"no image")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    cases = {
        (str(tower_run), "red.png", "what"): "train-vlm --vision-tower",
        (str(vlm_run), "none.png", "what"): "no image none.png",
        (str(vlm_run), "broken.png", "what"): "broken.png is not an image",
        (str(vlm_run), "red.png", "is <image> like <image>"): "1 images but 2 places",
        (str(vlm_run), "red.png", "what", "--tokens", "9"): "trained for 4",
        (str(vlm_run), "what", "--each"): "--each",
        (str(vlm_run), "red.png"): "no question",
        ("nowhere", "red.png", "what"): "not a run directory",
    }
    for arguments, words in cases.items():
        monkeypatch.setattr(sys, "argv", ["vlmkit", "ask", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        error = " ".join(capsys.readouterr().err.split())
        assert stop.value.code == 2 and error.startswith("Error: ") and words in error, error
