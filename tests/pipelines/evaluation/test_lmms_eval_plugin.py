"""The lmms-eval plug-in by its entry point, on fake tasks; against lmms-eval's own classes where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_recipes import vlm_recipe

from vlmkit.config import CompressorConfig, LLMConfig
from vlmkit.data.images import decode_image
from vlmkit.errors import UserError
from vlmkit.evals.generation import GreedyAnswerer, ImagePrompts
from vlmkit.models.llm import load_llm
from vlmkit.models.vision_tower import build_tower
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.vlm_models import encoder_of, load_vlm
from vlmkit.runs import RunDirectory
from vlmkit.tasks.vlm import VLMTask

PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"
PLUGIN = "vlmkit.pipelines.evaluation.lmms_eval_plugin"
GREEDY = {"max_new_tokens": 5, "temperature": 0, "do_sample": False, "num_beams": 1}


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str


class Model:
    """What the plug-in uses of lmms-eval's base class."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the plug-in imports, unless lmms-eval (50 dependencies) is here."""
    if find_spec("lmms_eval") is None:
        names = {
            "api.instance": {"Instance": object},
            "api.model": {"lmms": Model},
            "models.registry_v2": {"ModelManifest": Manifest},
        }
        for name, contents in names.items():
            module = ModuleType(f"lmms_eval.{name}")
            vars(module).update(contents)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        for package in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)


@dataclass
class Request:
    args: tuple[Any, ...]


DOCS: list[dict[str, Any]] = [
    {"question": "what color is it", "answer": "red", "images": [Image.effect_noise((40, 20), 90)]},
    {"question": "say yes", "answer": "yes", "images": None},
    {
        "question": "are <image> and <image> alike",
        "answer": "not at all",
        "images": [Image.new("RGBA", (9, 9), "red"), Image.new("L", (9, 5))],
    },
    {
        "question": "is it in <image> or in <image>",
        "answer": "in the first",
        "images": [Image.new("RGB", (30, 40), "blue")],
    },
]


def requests(second: Any) -> Iterator[Request]:
    for number, doc in enumerate(DOCS):
        yield Request((doc["question"], second, lambda doc: doc["images"], number, "fake", "test"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that serves one token and four, as if trained."""
    llm, tokenizer = load_llm(LLMConfig(name="nano"), seed=0)
    choice = CompressorConfig(name="avgpool", num_visual_tokens=[1, 4])
    vlm = VLM.join(build_tower("ViT-mini-8-64"), llm, choice, tokenizer.convert_tokens_to_ids("<image>"), seed=0)
    directory = RunDirectory(tmp_path_factory.mktemp("plugin") / "run")
    directory.prepare(vlm_recipe("ViT-mini-8-64", **{"compressor.num_visual_tokens": [1, 4]}), {}, {})
    with directory.writing_model() as scratch:
        VLMTask(vlm.eval(), tokenizer, "finetune").export(str(scratch))
    return directory.path


def evaluation(run: Path, tokens: int | None) -> tuple[GreedyAnswerer, list[ImagePrompts]]:
    """The same questions without lmms-eval; the last has more places than images, which then stand in front."""
    vlm, tokenizer = load_vlm(run)
    answerer = GreedyAnswerer(vlm, encoder_of(vlm, tokenizer, 256, tokens), batch_size=1, max_new_tokens=5)
    window = []
    for doc in DOCS:
        pixels = [np.asarray(image.convert("RGB")) for image in doc["images"] or []]
        images = [answerer.transform(decode_image(array)) for array in pixels]
        window.append(ImagePrompts("q", images, [doc["question"]]))
    window[-1] = ImagePrompts("q", window[-1].images, ["is it in  or in"])
    return answerer, window


def model(run: Path, **arguments: Any) -> Any:
    """The plug-in as lmms-eval makes it: entry point, manifest, class by its path, arguments of the command line."""
    (line,) = [line for line in PYPROJECT.read_text().splitlines() if PLUGIN in line]
    name, _, value = line.partition(" = ")
    assert '[project.entry-points."lmms_eval.models"]' in PYPROJECT.read_text()
    manifest = EntryPoint(name, value.strip('"'), "lmms_eval.models").load()()
    assert manifest.model_id == "vlmkit"
    module, _, class_name = manifest.simple_class_path.rpartition(".")
    made = getattr(sys.modules[module], class_name)(pretrained=str(run), **{"device": "cpu", **arguments})
    assert made.is_simple
    made.task_dict = {"fake": {"test": DOCS}}
    return made


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("tokens", [None, 1])
def test_answers_are_those_of_evaluation(run: Path, tokens: int | None) -> None:
    plugin = model(run, tokens=tokens, batch_size="3")
    answerer, window = evaluation(run, tokens)
    expected = [text for (text,) in answerer.answer(window)]
    assert plugin.generate_until(list(requests(GREEDY))) == expected and len(set(expected)) > 1
    # Every request its own room and stop texts.
    mixed = list(requests(GREEDY))
    mixed[0] = Request((mixed[0].args[0], {**GREEDY, "max_new_tokens": 1}, *mixed[0].args[2:]))
    mixed[2] = Request((mixed[2].args[0], {**GREEDY, "until": ["\a", expected[2][1:3]]}, *mixed[2].args[2:]))
    short, *others = plugin.generate_until(mixed)
    assert expected[0].startswith(short) and len(short) < len(expected[0])
    assert others == [expected[1], expected[2][:1].strip(), expected[3]]


@pytest.mark.usefixtures("stand_in")
def test_the_loss_is_of_the_continuation_alone(run: Path) -> None:
    plugin = model(run, batch_size=2)
    answerer, window = evaluation(run, None)
    likely = [one for (one,) in answerer.likelihoods(window, [[doc["answer"]] for doc in DOCS])]
    expected = [(pytest.approx(-one.log_probability / one.num_tokens, abs=1e-5), one.greedy) for one in likely]
    assert plugin.loglikelihood(list(requests(lambda doc: f" {doc['answer']}"))) == expected
    given = [Request((args[0], DOCS[args[3]]["answer"], *args[2:])) for args in (one.args for one in requests(None))]
    assert plugin.loglikelihood(given) == expected


@pytest.mark.usefixtures("stand_in")
def test_what_is_not_served_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = model(run)
    for asked in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 3}):
        with pytest.raises(UserError, match="vlmkit answers greedily, but the task asks for"):
            plugin.generate_until(list(requests({**GREEDY, **asked})))
    with pytest.raises(UserError, match="The task fake shows a str, and vlmkit reads images only"):
        plugin.generate_until([Request(("what happens", GREEDY, lambda doc: ["film.mp4"], 0, "fake", "test"))])
    with pytest.raises(UserError, match="one question at a time"):
        plugin.generate_until_multi_round([])
    with pytest.raises(UserError, match=r"no batch size by itself \(auto\)"):
        model(run, batch_size="auto")
    with pytest.raises(UserError, match="trained for 1, 4"):
        model(run, tokens=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="in one process"):
        model(run)
