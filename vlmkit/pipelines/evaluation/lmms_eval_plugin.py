"""VLM runs under lmms-eval: ``lmms_eval --model vlmkit --model_args pretrained=RUN``. Only lmms-eval imports this file.

It finds :func:`manifest` by the entry point ``lmms_eval.models``; the package is the extra ``lmms-eval``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image as PILImage

from vlmkit.config import VLMRecipe
from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.data.images import decode_image
from vlmkit.errors import UserError
from vlmkit.evals.generation import GreedyAnswerer, ImagePrompts
from vlmkit.evals.runner import WINDOW_BATCHES
from vlmkit.pipelines.vlm_models import encoder_of, load_vlm
from vlmkit.runs import RunDirectory, is_run
from vlmkit.training import distributed

MAX_NEW_TOKENS = 1024
"""Room for an answer where a task does not say, as for lmms-eval's own models."""


def manifest() -> ModelManifest:
    """What lmms-eval registers."""
    return ModelManifest("vlmkit", simple_class_path=f"{__name__}.{VLMKit.__name__}")


class VLMKit(lmms):
    """A finished VLM run, or a LLaVA-1.5 directory, as a model of lmms-eval: greedy answers about images.

    ``tokens`` chooses among the numbers of visual tokens that an elastic run serves. Raises UserError if ``pretrained``
    is neither, and for requests that it cannot serve: other media than images, sampling, beams, several rounds, and
    more than one process.
    """

    def __init__(
        self,
        pretrained: str,
        tokens: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("vlmkit answers under lmms-eval in one process; start it without accelerate or torchrun.")
        if not str(batch_size).isdigit():
            raise UserError(f"vlmkit finds no batch size by itself ({batch_size}); give --batch_size a number.")
        recipe = RunDirectory(pretrained).recipe() if is_run(pretrained) else VLMRecipe()
        vlm, tokenizer = load_vlm(pretrained)
        max_length = recipe.max_length if isinstance(recipe, VLMRecipe) else VLMRecipe().max_length
        encoder = encoder_of(vlm, tokenizer, max_length, tokens)
        self.pretrained = pretrained
        self.device = torch.device(device) if device else distributed.setup("auto").device
        self._answerer = GreedyAnswerer(torch.nn.Module.to(vlm, self.device), encoder, batch_size=int(batch_size))

    @property
    def batch_size(self) -> int:
        """Images, or prompts, of one pass."""
        return self._answerer.batch_size

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The greedy answers, in the order of the requests, each cut where a text of its ``until`` begins."""
        by_room: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_room.setdefault(_room(request.args[1]), []).append(index)
        answers = [""] * len(requests)
        for room, indices in by_room.items():
            for chosen in self._windows(indices):
                window = [self._prompt(requests[index]) for index in chosen]
                for index, (text,) in zip(chosen, self._answerer.answer(window, room), strict=True):
                    answers[index] = _until(text, requests[index].args[1])
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """For each request the mean loss of its continuation's tokens, and whether it is the greedy answer.

        The loss, not its negative: so do lmms-eval's own models, and its multiple choice takes the smallest.
        """
        scored: list[tuple[float, bool]] = []
        for chosen in self._windows(range(len(requests))):
            window = [self._prompt(requests[index]) for index in chosen]
            answers = [[self._continuation(requests[index])] for index in chosen]
            for (likelihood,) in self._answerer.likelihoods(window, answers):
                scored.append((-likelihood.log_probability / likelihood.num_tokens, likelihood.greedy))
        return scored

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise UserError("vlmkit answers one question at a time; choose tasks without rounds.")

    def _windows(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """Requests whose images are held at a time: their prompts are sorted by length together."""
        size = WINDOW_BATCHES * self.batch_size
        return [indices[start : start + size] for start in range(0, len(indices), size)]

    def _prompt(self, request: Instance) -> ImagePrompts:
        context, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        images = [self._answerer.transform(_pixels(visual, task)) for visual in visuals]
        if context.count(IMAGE_TOKEN) not in (0, len(images)):  # tasks name an image twice, or one that is not shown
            context = context.replace(IMAGE_TOKEN, "").strip()
        return ImagePrompts(f"{task}/{doc_id}", images, [context])

    def _continuation(self, request: Instance) -> str:
        _, target, _, doc_id, task, split = request.args
        return (target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])).strip()


def _pixels(visual: Any, task: str) -> torch.Tensor:
    if not isinstance(visual, PILImage.Image):
        raise UserError(f"The task {task} shows a {type(visual).__name__}, and vlmkit reads images only; leave it out.")
    return decode_image(np.asarray(visual.convert("RGB")))


def _room(generation: dict[str, Any]) -> int:
    """New tokens at most. Raises UserError where an answer is not to be the greedy one."""
    if generation.get("do_sample") or generation.get("temperature") or (generation.get("num_beams") or 1) > 1:
        raise UserError(
            f"vlmkit answers greedily, but the task asks for {generation}; override it with "
            "--gen_kwargs temperature=0,do_sample=False,num_beams=1."
        )
    return int(generation.get("max_new_tokens") or MAX_NEW_TOKENS)


def _until(text: str, generation: dict[str, Any]) -> str:
    stops = generation.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if stop else text
    return text.strip()
