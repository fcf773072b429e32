"""Questions to a trained VLM about images at hand: many at once, or one after another in a dialogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import TextStreamer

from vlmkit.config import PretrainRecipe, VLMRecipe
from vlmkit.data.images import decode_image
from vlmkit.data.samples import BadSample, Turn
from vlmkit.data.sources.image_folder import IMAGE_SUFFIXES
from vlmkit.errors import UserError
from vlmkit.evals.generation import GreedyAnswerer, ImagePrompts
from vlmkit.pipelines.vlm_models import encoder_of, load_vlm
from vlmkit.runs import RunDirectory, is_run
from vlmkit.training import distributed

WINDOW = 32
"""Images that are held at a time where a question is asked about each."""
BATCH_SIZE = 16
ASKED = "(your question)"
"""What error messages call the sample that is made of a question."""


@dataclass(frozen=True)
class AskSettings:
    """Visual tokens of an image (None: the most that the run serves), tokens of an answer at most, and the device."""

    tokens: int | None = None
    max_new_tokens: int = 128
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True)
class Reply:
    """An answer, and what it answers: a question about the images."""

    images: tuple[str, ...]
    question: str
    answer: str
    visual_tokens: int


def split_images(words: Sequence[str]) -> tuple[list[Path], str | None]:
    """Images, and the question that follows them if there is one: the last word, unless it names a file or looks as if
    it did. Raises UserError for an image that is not there."""
    *images, last = words or [""]
    if last and (Path(last).is_file() or (Path(last).suffix.lower() in IMAGE_SUFFIXES and " " not in last)):
        images, last = [*images, last], ""
    for image in images:
        if not Path(image).is_file():
            raise UserError(f"There is no image {image}; give the paths of images, and the question last, in quotes.")
    return [Path(image) for image in images], last or None


class Assistant:
    """A finished VLM run of any stage, or a LLaVA-1.5 checkpoint, ready to answer.

    Raises UserError if ``run`` is none, has not finished, or does not serve the number of visual tokens asked for.
    """

    def __init__(self, run: Path, settings: AskSettings) -> None:
        self._settings = settings
        self._max_length = _max_length(run)
        self._vlm, self._tokenizer = load_vlm(run)
        self.use_tokens(settings.tokens)
        torch.nn.Module.to(self._vlm, distributed.setup(settings.device).device)

    def use_tokens(self, count: int | None) -> None:
        """Show images in this many visual tokens from now on (None: the most). Raises UserError for any other count
        than those the run serves."""
        encoder = encoder_of(self._vlm, self._tokenizer, self._max_length, count)
        limit = self._settings.max_new_tokens
        self._answerer = GreedyAnswerer(self._vlm, encoder, batch_size=BATCH_SIZE, max_new_tokens=limit)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of an image."""
        return self._answerer.encoder.num_visual_tokens

    def pixels(self, images: Sequence[Path]) -> list[torch.Tensor]:
        """uint8 [3, S, S] each. Raises UserError, naming the file, where one cannot be read."""
        return [self._answerer.transform(_read(image)) for image in images]

    def ask(self, images: Sequence[Path], questions: Sequence[str], each: bool = False) -> Iterator[Reply]:
        """Answer questions that stand alone, about all images together or, with ``each``, about one image at a time."""
        groups = [[image] for image in images] if each else [list(images)]
        for start in range(0, len(groups), WINDOW):
            chosen = groups[start : start + WINDOW]
            answers = self._answerer.answer([ImagePrompts(ASKED, self.pixels(g), questions) for g in chosen])
            for group, of_group in zip(chosen, answers, strict=True):
                names = tuple(map(str, group))
                for question, answer in zip(questions, of_group, strict=True):
                    yield Reply(names, question, answer, self.visual_tokens)

    def follow_up(
        self,
        pixels: Sequence[torch.Tensor],
        history: Sequence[Turn],
        question: str,
        on_text: Callable[[str], None] | None,
    ) -> str:
        """The answer to a question after earlier turns; ``on_text`` hears it word by word."""
        streamer = _Words(self._tokenizer, on_text) if on_text else None
        ((answer,),) = self._answerer.answer([ImagePrompts(ASKED, pixels, [question], history)], streamer=streamer)
        return answer


class Dialogue:
    """Questions about the same images, one after another: each is asked with all turns before it."""

    def __init__(self, assistant: Assistant, images: Sequence[Path]) -> None:
        self.assistant = assistant
        self.turns: list[Turn] = []
        self._pixels = assistant.pixels(images)

    def say(self, question: str, on_text: Callable[[str], None] | None = None) -> str:
        """The answer, which becomes a part of the dialogue."""
        answer = self.assistant.follow_up(self._pixels, self.turns, question, on_text)
        self.turns.append(Turn(question, answer))
        return answer


class _Words(TextStreamer):
    def __init__(self, tokenizer: object, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)  # type: ignore[arg-type]
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)


def _max_length(path: Path) -> int:
    """The longest row the model was trained with. What is no VLM run is left to ``load_vlm`` to take or refuse, but for
    what there is more to say of."""
    recipe = RunDirectory(path).recipe() if is_run(path) else VLMRecipe()
    if isinstance(recipe, PretrainRecipe):
        raise UserError(
            f"{path} is a vision tower, which cannot answer; train a VLM on it first: "
            f"vlmkit train-vlm --vision-tower {path}."
        )
    if not isinstance(recipe, VLMRecipe):
        return VLMRecipe().max_length
    run = RunDirectory(path)
    if not run.finished and RunDirectory(run.align_dir).finished:
        raise UserError(f"The run {path} has not finished, but its align stage has: ask {run.align_dir}.")
    return recipe.max_length


def _read(path: Path) -> torch.Tensor:
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the paths of images.") from error
    except BadSample as error:
        raise UserError(f"{path} is not an image that can be shown ({error}); give another.") from error
