"""How long the parts of an answer take on the machine at hand, over language models and numbers of visual tokens."""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count as count_from
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import AutoModelForCausalLM, Cache

from vlmkit import registry
from vlmkit.config import CompressorConfig, LLMConfig, VLMRecipe
from vlmkit.contracts import IMAGE_TOKEN
from vlmkit.errors import UserError
from vlmkit.evals.progress import shown
from vlmkit.models.compressors import COMPRESSORS, shrunken_image_size
from vlmkit.models.compressors.base import legal_counts
from vlmkit.models.llm import llm_config, load_llm
from vlmkit.models.prompt_prefix import cache_argument, cache_in
from vlmkit.models.questions import last_states, mean_embeddings
from vlmkit.models.towers import find_tower
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.plans.plan import gigabytes, memory_here
from vlmkit.pipelines.plans.plan_flops import language_layers
from vlmkit.pipelines.timing import Replay, hardware, interleaved_seconds
from vlmkit.pipelines.vlm_models import load_vlm
from vlmkit.runs import RunDirectory, is_run, versions, write_atomically
from vlmkit.scaling.cost import DTYPE_BYTES, Dtype
from vlmkit.scaling.latency import LatencyTable, Timing
from vlmkit.scaling.workload import Workload
from vlmkit.training import distributed
from vlmkit.training.metrics import Progress, Silent

_TORCH_DTYPES: Mapping[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_Key = tuple[str, int]
"""A part of an answer, and the visual tokens it is timed with."""


@dataclass(frozen=True)
class BenchSettings:
    """What is timed, and how.

    ``models``: registry names of language models (their shape with random weights), local directories and hub ids
    (their weights), or finished VLM runs, which come with a tower, a compressor and token counts of their own. The
    others stand behind the tower and compressor named here, ``image_size`` None being the tower's own. ``tokens`` None:
    every count that tiles the patch grid, or that a run serves. ``dtype`` None: bf16 on GPUs, fp32 on CPUs.
    ``cuda_graphs``: each part is captured as a CUDA graph and replayed, as serving engines do, so that its time is the
    GPU's alone and not what Python takes to launch it; None: on GPUs. Raises UserError for no or repeated models, for a
    workload that leaves nothing to time, and for impossible numbers.
    """

    models: Sequence[str]
    workload: Workload
    tokens: Sequence[int] | None = None
    tower: str = "ViT-L-14-336"
    compressor: str = "avgpool"
    image_size: int | None = None
    dtype: Dtype | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cuda_graphs: bool | None = None
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        names = [table_name(model) for model in self.models]
        if not names or len({*names}) < len(names):
            raise UserError(f"The language models to time are {', '.join(names) or 'none'}; name each of them once.")
        if self.workload.new_tokens < 2:
            raise UserError("The first new token is the prefill's, so one alone times no decoding; ask for 2 or more.")
        if registry.compressor(self.compressor).conditioned and not self.workload.text_tokens:
            raise UserError(f"The compressor {self.compressor} reads a question; give at least one text token.")
        if self.repeats < 1:
            raise UserError(f"The number of repeats is {self.repeats}; it must be at least 1.")


def table_name(model: str) -> str:
    """What the table, and measurements of the same model, call it: the registry's name of a language model if it has
    one, of a VLM run the one it was trained with."""
    if is_run(model):
        recipe = RunDirectory(model).recipe()
        if not isinstance(recipe, VLMRecipe):
            raise UserError(f"{model} is no VLM run; give a run of `vlmkit train-vlm`, or a language model.")
        model = recipe.llm.name
    return registry.llm(model).name if registry.is_llm(model) else model


def bench(settings: BenchSettings, out: Path, progress: Progress | None = None) -> LatencyTable:
    """Time every model and write the table to ``out``, whole and at the end or not at all.

    Each part is run ``repeats`` times in rounds through all parts and token counts of a model, after a round to warm
    up. Raises UserError for models that cannot be had, captured or held in this machine's memory, for token counts that
    cannot be made, and for an ``out`` that cannot be written.
    """
    if out.is_dir() or out.suffix != ".json":
        raise UserError(f"The latency table is one JSON file; give --out a name that ends in .json, not {out}.")
    device = distributed.setup(settings.device).device
    on_gpu = device.type == "cuda"
    if settings.cuda_graphs and not on_gpu:
        raise UserError("CUDA graphs run on NVIDIA GPUs alone; leave --cuda-graphs out on a CPU.")
    settings = replace(settings, cuda_graphs=on_gpu if settings.cuda_graphs is None else settings.cuda_graphs)
    dtype: Dtype = settings.dtype or ("bf16" if on_gpu else "fp32")
    tower_at = cache(lambda image_size: find_tower(settings.tower, image_size, settings.seed))
    rows: list[Timing] = []
    for model in settings.models:
        try:
            rows += _time(model, tower_at, settings, dtype, device, progress or Silent())
        except torch.OutOfMemoryError as error:
            what = f"{table_name(model)} with {settings.workload}"
            raise UserError(f"{what} needs more memory than the GPU has; time fewer answers at once.") from error
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
    table = LatencyTable(
        hardware=hardware(device),
        date=datetime.date.today().isoformat(),
        versions=versions(),
        dtype=dtype,
        device=device.type,
        cuda_graphs=bool(settings.cuda_graphs),
        threads=torch.get_num_threads(),
        workload=settings.workload,
        rows=tuple(rows),
    )
    write_atomically(out, table.dumps())
    return table


def _time(
    model: str,
    tower_at: Callable[[int | None], VisionTower],
    settings: BenchSettings,
    dtype: Dtype,
    device: torch.device,
    progress: Progress,
) -> Iterator[Timing]:
    """The rows of one model, which is built here and gone afterwards."""
    with shown(progress, 1, f"building {table_name(model)}"):
        if is_run(model):
            vlms, tower = _vlms_of_run(model, settings)
        else:
            vlms, tower = _vlms_around(model, tower_at, settings, dtype, device), settings.tower
        for vlm in vlms.values():
            torch.nn.Module.to(vlm.eval(), device=device, dtype=_TORCH_DTYPES[dtype])
    with torch.inference_mode():
        seconds = _seconds(table_name(model), vlms, settings, device, progress)
    steps = settings.workload.new_tokens - 1
    for count, vlm in vlms.items():
        runs = {part: values for (part, key), values in seconds.items() if key == count}
        # Token counts that share a tower share its times.
        runs |= {"tower": seconds["tower", _first_with_tower(vlms, vlm.vision_tower)]}
        per_unit = {part: steps if part == "decode" else 1 for part in runs}
        yield Timing(
            llm=table_name(model),
            visual_tokens=count,
            tower=tower,
            image_size=vlm.vision_tower.image_size,
            compressor=vlm.config.compressor,
            prefill_flops=_prefill_flops(vlm, count, settings.workload),
            runs={part: [1e3 * value / per_unit[part] for value in values] for part, values in runs.items()},
        )


def _vlms_of_run(run: str, settings: BenchSettings) -> tuple[dict[int, VLM], str]:
    """A finished VLM run under each of its token counts that is asked for, and what its tower is called."""
    vlm, _ = load_vlm(run)
    counts = settings.tokens or vlm.config.token_counts
    for count in counts:
        vlm.config.require_count(count)
    return dict.fromkeys(counts, vlm), cast(VLMRecipe, RunDirectory(run).recipe()).vision_tower.name


def _vlms_around(
    model: str,
    tower_at: Callable[[int | None], VisionTower],
    settings: BenchSettings,
    dtype: Dtype,
    device: torch.device,
) -> dict[int, VLM]:
    """A language model behind the tower, with a compressor for each token count."""
    named = registry.is_llm(model)
    config = LLMConfig(name=model, weights="random" if named else "pretrained")
    _check_fits(config, dtype, device)
    tower = tower_at(settings.image_size)
    counts = settings.tokens or legal_counts(tower.grid)
    towers = dict.fromkeys(counts, tower)
    if COMPRESSORS[settings.compressor].placement == "image":
        # Tokens are made by a smaller image, and so by another tower.
        towers = {count: tower_at(shrunken_image_size([count], tower.grid, tower.patch_size)) for count in counts}
    llm, tokenizer = load_llm(config, settings.seed, _TORCH_DTYPES[dtype], device)
    image_token = tokenizer.get_vocab()[IMAGE_TOKEN]
    vlms = {}
    for count in counts:
        compressor = CompressorConfig(name=settings.compressor, num_visual_tokens=count)
        vlms[count] = VLM.join(towers[count], llm, compressor, image_token, settings.seed)
    return vlms


def _check_fits(config: LLMConfig, dtype: Dtype, device: torch.device) -> None:
    """Raise UserError if the weights of a language model are larger than the memory that is free."""
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(llm_config(config))
    needed = shape.num_parameters() * DTYPE_BYTES[dtype]
    available, where = memory_here(device.type)
    if needed > available:
        raise UserError(
            f"{config.name} needs {gigabytes(needed)} for its weights in {dtype}, but {where} has "
            f"{gigabytes(available)} free; time a smaller one, or in bf16."
        )


def _seconds(
    name: str, vlms: Mapping[int, VLM], settings: BenchSettings, device: torch.device, progress: Progress
) -> dict[_Key, list[float]]:
    """Seconds of every run of every part, for each token count; the tower's under the first count that has it."""
    timed: dict[_Key, Callable[[], object]] = {}
    for count, vlm in vlms.items():
        parts = _Parts(vlm, count, settings.workload, device)
        if count == _first_with_tower(vlms, vlm.vision_tower):
            timed["tower", count] = parts.see
        timed["compressor", count] = partial(parts.compress, parts.see())
        if vlm.compressor.conditioned and not settings.workload.cached_text:
            timed["query pass", count] = parts.ask
        text = parts.cached_text()
        timed["prefill", count] = _Continued(parts.prefill, text)
        timed["decode", count] = _Continued(parts.decode, parts.prefill(deepcopy(text)))
    if settings.cuda_graphs:
        timed = _captured(name, timed)
    total = (settings.repeats + 1) * len(timed)
    started = count_from(0)

    def before(key: _Key) -> None:
        progress.update(next(started), {})
        run = timed[key]
        if isinstance(run, _Continued):
            run.prepare()

    with shown(progress, total, f"timing {name}"):
        seconds = interleaved_seconds(timed, settings.repeats, device, before)
        progress.update(total, {})
    return seconds


def _captured(name: str, timed: Mapping[_Key, Callable[[], object]]) -> dict[_Key, Callable[[], object]]:
    """Every part as a CUDA graph. Raises UserError if a model's parts cannot be captured."""
    pool = torch.cuda.graph_pool_handle()
    try:
        return {
            key: Replay(run, run.prepare if isinstance(run, _Continued) else lambda: None, pool)
            for key, run in timed.items()
        }
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(
            f"{name} cannot be captured as CUDA graphs ({str(error).splitlines()[0]}); time it with --no-cuda-graphs."
        ) from error


class _Continued:
    """A part that continues a state, which it writes to: every run takes a copy, made ahead of it."""

    def __init__(self, run: Callable[[Cache | None], object], state: Cache | None) -> None:
        self._run, self._state = run, state
        self._copy: Cache | None = None

    def prepare(self) -> object:
        """Make the copy; returns what holds its tensors, which the copy lets go of as it is written to."""
        tensors: dict[int, Any] = {}
        self._copy = deepcopy(self._state, tensors)
        return tensors

    def __call__(self) -> None:
        copy, self._copy = self._copy, None
        self._run(copy)


def _first_with_tower(vlms: Mapping[int, VLM], tower: VisionTower) -> int:
    return next(count for count, vlm in vlms.items() if vlm.vision_tower is tower)


class _Parts:
    """The parts of an answer of one VLM with one number of visual tokens, each to be run by itself."""

    def __init__(self, vlm: VLM, count: int, workload: Workload, device: torch.device) -> None:
        self._vlm, self._count, self._work = vlm, count, workload
        self._decoder = vlm.language_model.get_decoder()
        side, batch = vlm.vision_tower.image_size, self._work.batch_size
        # Normalised already: that copies constants to the GPU, which no CUDA graph captures, and takes next to no time.
        self._images = torch.randn(batch, 3, side, side, device=device)
        # Text is zeros but for its number: what tokens say does not change how long they take.
        self._text = torch.zeros(batch, self._work.text_tokens, dtype=torch.long, device=device)
        width = vlm.get_input_embeddings().get_parameter("weight").shape[1]
        dtype = next(vlm.language_model.parameters()).dtype
        self._question = torch.randn(batch, width, device=device, dtype=dtype) if vlm.compressor.conditioned else None
        read = self._work.prefilled_text + count
        self._embeds = torch.randn(batch, read, width, device=device, dtype=dtype)

    def see(self) -> Any:
        """The tower: features of the images."""
        compressor = self._vlm.compressor
        return self._vlm.vision_tower(self._images, compressor.requires, compressor.levels)

    def compress(self, features: Any) -> torch.Tensor:
        """Compressor and projector."""
        return self._vlm.projector(self._vlm.compressor(features, self._question, self._count))

    def ask(self) -> torch.Tensor:
        """What the compressor is told of the question, which is taken to be the whole text."""
        encoder = {"llm": last_states, "embed_mean": mean_embeddings}[self._vlm.config.query]
        return encoder(self._vlm.language_model, self._text, torch.ones_like(self._text))

    def cached_text(self) -> Cache | None:
        """The state of the text, where it was read before."""
        if not (self._work.cached_text and self._work.text_tokens):
            return None
        return self._read(None, input_ids=self._text)[1]

    def prefill(self, cache: Cache | None) -> Cache:
        """All tokens that are not cached, and the logits of the last; the state after them."""
        return self._read(cache, inputs_embeds=self._embeds)[1]

    def decode(self, cache: Cache | None) -> None:
        """The tokens after the first, one after another, each the likeliest."""
        token = self._text.new_zeros(len(self._images), 1)
        for _ in range(self._work.new_tokens - 1):
            logits, cache = self._read(cache, input_ids=token)
            token = logits.argmax(dim=-1)

    def _read(self, cache: Cache | None, **tokens: torch.Tensor) -> tuple[torch.Tensor, Cache]:
        """(logits of the last token [B, 1, V], the state after it)."""
        past = {} if cache is None else {cache_argument(self._decoder): cache}
        output = self._decoder(**tokens, **past, use_cache=True)
        state = cache_in(output)
        assert state is not None
        return self._vlm.get_output_embeddings()(output.last_hidden_state[:, -1:]), state


def _prefill_flops(vlm: VLM, count: int, workload: Workload) -> float:
    layers, head = language_layers(vlm), vlm.get_output_embeddings().get_parameter("weight")
    cached = workload.text_tokens - workload.prefilled_text
    return layers.forward_flops(float(workload.prefilled_text + count), cached) + 2.0 * head.numel()
