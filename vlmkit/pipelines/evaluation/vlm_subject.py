"""What may be evaluated as a VLM: a finished run, a LLaVA-1.5 checkpoint, any VLM of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from vlmkit import registry
from vlmkit.config import VLMRecipe
from vlmkit.errors import UserError
from vlmkit.evals.generation import MAX_NEW_TOKENS, Answerer, GreedyAnswerer
from vlmkit.evals.transformers_answerer import TransformersAnswerer
from vlmkit.models.image_text_to_text import load_image_text_to_text, read_config
from vlmkit.models.llava_layout import is_llava, load_llava
from vlmkit.models.transformers_tower import is_hub_directory
from vlmkit.pipelines.evaluation.reports import EvalSettings
from vlmkit.pipelines.fit import hardware
from vlmkit.pipelines.vlm_models import encoder_of, load_vlm
from vlmkit.runs import RunDirectory, files_stamp, is_run, provenance, write_atomically
from vlmkit.training import distributed

RESULTS = Path("runs")
"""Where the results of models that are no runs go, each in a directory named after the model."""


@dataclass(frozen=True)
class VLMSubject:
    """A VLM under evaluation: ``answerers`` hold it at one number of visual tokens each, ``results`` is where its rows
    and records go, ``llm`` and ``seed`` are what the rows say of it beside the answerer's facts, and ``identity`` is
    what else decides its answers."""

    results: RunDirectory
    llm: str
    seed: int | None
    identity: Mapping[str, Any]
    answerers: Sequence[Answerer]
    elastic: bool = False

    def records_path(self, benchmark: str, answerer: Answerer) -> Path:
        """Where the answers to a benchmark go: a file for each number of visual tokens, if it serves several."""
        name = f"{benchmark}-{answerer.facts['visual_tokens']}" if self.elastic else benchmark
        return self.results.samples_dir / f"{name}.jsonl"


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` names a model that is no run: a directory in hub layout, or what can only be a hub id."""
    if is_run(path):
        return False
    return is_hub_directory(str(path)) or (len(path.parts) == 2 and not path.is_absolute() and not path.exists())


def open_run(path: Path, recipe: VLMRecipe, settings: EvalSettings) -> VLMSubject:
    """A finished VLM run at each of ``settings.tokens`` (none: the most that it serves).

    Raises UserError if it has not finished or does not serve one of the counts.
    """
    vlm, tokenizer = load_vlm(path)
    counts = settings.tokens or (vlm.config.num_visual_tokens,)
    encoders = [encoder_of(vlm, tokenizer, recipe.max_length, count) for count in counts]
    device = distributed.setup(settings.device).device
    torch.nn.Module.to(vlm, device)
    run = RunDirectory(path)
    return VLMSubject(
        run,
        _canonical(recipe.llm.name),
        recipe.seed,
        {**_identity(files_stamp(run.model_dir), device), "max_length": recipe.max_length},
        [GreedyAnswerer(vlm, encoder, batch_size=settings.batch_size) for encoder in encoders],
        elastic=len(vlm.config.token_counts) > 1,
    )


def open_checkpoint(path: Path, settings: EvalSettings) -> VLMSubject:
    """A model that was trained elsewhere, a directory or a hub id; its results go to ``settings.out``.

    LLaVA-1.5 is read by vlmkit's own parts, and shown images as it was trained (padded, not cropped); every other model
    is transformers', with its own processor. Raises UserError if it cannot be had, has no such number of visual tokens,
    or if its results would be mixed with those of another model.
    """
    source = str(path)
    config = read_config(source)
    local = is_hub_directory(source)
    results = RunDirectory(settings.out or RESULTS / (path.resolve().name if local else "--".join(path.parts)))
    model = str(path.resolve()) if local else source
    _check_unmixed(results, model)
    context = distributed.setup(settings.device)
    answerer = (_llava if is_llava(config) else _other)(source, settings, context.device)
    revision = getattr(config, "_commit_hash", None)
    about = {"model": model, "revision": revision, **provenance({}, hardware(context))}
    context.on_main(lambda: write_atomically(results.provenance_path, json.dumps(about, indent=2) + "\n"))
    identity = _identity(files_stamp(path) if local else revision, context.device)
    return VLMSubject(results, _language_model_name(config, source), None, identity, [answerer])


def _identity(files: str | None, device: torch.device) -> dict[str, Any]:
    return {"files": files, "device": device.type, "max_new_tokens": MAX_NEW_TOKENS}


def _llava(source: str, settings: EvalSettings, device: torch.device) -> Answerer:
    vlm, tokenizer = load_llava(source, None, seed=0)
    _check_tokens(source, vlm.config.num_visual_tokens, settings)
    encoder = encoder_of(vlm, tokenizer, VLMRecipe().max_length)
    torch.nn.Module.to(vlm, device)
    return GreedyAnswerer(vlm, encoder, batch_size=settings.batch_size)


def _other(source: str, settings: EvalSettings, device: torch.device) -> Answerer:
    model, processor = load_image_text_to_text(source, device)
    answerer = TransformersAnswerer(model, processor, batch_size=settings.batch_size)
    _check_tokens(source, answerer.visual_tokens, settings)
    return answerer


def _check_tokens(source: str, count: int | None, settings: EvalSettings) -> None:
    if settings.tokens not in ((), (count,)):
        own = f"of {count}" if count else "that depend on their sizes"
        raise UserError(
            f"{source} shows images in numbers of visual tokens {own}, and no others can be chosen; leave --tokens out."
        )


def _language_model_name(config: PreTrainedConfig, source: str) -> str:
    """What the checkpoint says it was built from, else its own name."""
    return _canonical(getattr(config.get_text_config(), "_name_or_path", "") or source)


def _canonical(llm: str) -> str:
    """The registry's name of a language model, by which measurements of different runs find each other."""
    if registry.is_llm(llm):
        return registry.llm(llm).name
    return next((facts.name for facts in registry.LLMS.values() if facts.hub_id == llm), llm)


def _check_unmixed(results: RunDirectory, model: str) -> None:
    """Rows in one directory replace one another by what was measured, not by which model it was measured on."""
    known = json.loads(results.provenance_path.read_text()) if results.provenance_path.is_file() else {}
    if is_run(results.path) or known.get("model", model) != model:
        whose = f"those of {known['model']}" if "model" in known else "a run"
        raise UserError(f"The results of {model} would go to {results.path}, which holds {whose}; give another --out.")
