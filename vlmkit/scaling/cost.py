"""What one choice of LLM and number of visual tokens costs: cost models that answer in FLOPs, bytes or milliseconds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.registry import LLMFacts, VisionTowerFacts
from vlmkit.scaling import flops
from vlmkit.scaling.budgets import Budget, Unit, format_amount
from vlmkit.scaling.latency import LatencyTable
from vlmkit.scaling.measurements import SizedLLM
from vlmkit.scaling.workload import Workload

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPE_BYTES: Mapping[Dtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class VisionSide:
    """What stands before the language model: a tower at its image size, and a compressor of the registry.

    ``query`` says what a compressor that can read the question is told of it (see ``compressor.query``).
    """

    tower: VisionTowerFacts
    compressor: str
    query: Literal["llm", "embed_mean", "none"] = "llm"

    @classmethod
    def of(cls, tower: str = "ViT-L-14-336", compressor: str = "avgpool", image_size: int | None = None) -> VisionSide:
        """By registry names. Raises UserError for unknown ones, and for an image size that patches do not tile."""
        facts = registry.vision_tower(tower)
        if image_size is not None:
            if image_size < 1 or image_size % facts.patch_size:
                raise UserError(
                    f"Images of {image_size} pixels do not divide into the patches of {facts.name}; give a multiple of "
                    f"{facts.patch_size}."
                )
            facts = replace(facts, image_size=image_size)
        return cls(facts, registry.compressor(compressor).name)

    @property
    def conditioned(self) -> bool:
        """Whether visual tokens are formed for a question."""
        return registry.compressor(self.compressor).conditioned and self.query != "none"

    def tower_for(self, visual_tokens: float) -> VisionTowerFacts:
        """The tower as it is built for so many tokens: ``downsample`` shows it an image of so many patches.

        Raises UserError if the image has fewer patches than that.
        """
        if visual_tokens > self.tower.num_patches:
            raise UserError(
                f"{self.tower.name} makes {self.tower.num_patches} patches of an image of {self.tower.image_size} "
                f"pixels, too few for {visual_tokens:g} visual tokens; take a larger --image-size or fewer tokens."
            )
        if self.compressor != "downsample":
            return self.tower
        return replace(self.tower, image_size=round(math.sqrt(visual_tokens)) * self.tower.patch_size)

    def parts(self, llm: LLMFacts, visual_tokens: float) -> dict[str, flops.Part]:
        """FLOPs for one image, and weights, of the tower and of the compressor with the projector."""
        tower = self.tower_for(visual_tokens)
        told = llm.hidden_size if self.conditioned else None
        compressor = flops.compressor(self.compressor, tower, told, visual_tokens)
        return {
            "tower": flops.Part(flops.tower_flops(tower), tower.num_params),
            "compressor": compressor + flops.projector(tower, llm.hidden_size, visual_tokens),
        }


class CostModel(ABC):
    """What an answer costs. ``name`` is what users call it, ``unit`` what it counts."""

    name: ClassVar[str]
    unit: ClassVar[Unit]

    @abstractmethod
    def parts(self, llm: SizedLLM, visual_tokens: float) -> Mapping[str, float]:
        """The cost by part, in ``unit``; the parts add up to :meth:`cost`.

        Raises UserError where the model cannot know: an LLM without a shape in the registry or without measured times,
        more tokens than the image has patches, or a number of tokens outside what was measured.
        """

    @abstractmethod
    def describe(self) -> str:
        """What is counted and for which workload, in a few words for a note or an axis."""

    def cost(self, llm: SizedLLM, visual_tokens: float) -> float:
        """The whole cost in ``unit``. Raises UserError as :meth:`parts` does."""
        return sum(self.parts(llm, visual_tokens).values())

    def format(self, cost: float) -> str:
        """A cost for a reader."""
        return format_amount(cost, self.unit)


@dataclass(frozen=True)
class LLMCost(CostModel):
    """``llm``: the paper's 2 N (Q + V) FLOPs of the prefill (arXiv 2411.03312), and nothing else.

    N is the size the law uses: the one in the LLM's name for the published tables. Cached text is Q = 0.
    """

    workload: Workload
    name = "llm"
    unit = Unit.flops

    def parts(self, llm: SizedLLM, visual_tokens: float) -> Mapping[str, float]:
        return {"prefill": flops.prefill_flops(llm.billions, visual_tokens, self.workload.prefilled_text)}

    def describe(self) -> str:
        return f"2N(Q + V) FLOPs of the LLM's prefill; {self.workload}"


@dataclass(frozen=True)
class FullCost(CostModel):
    """``full``: all matrix products of one answer, from the shapes in the registry; FLOPs as torch counts them.

    The tower and compressor for one image, the query pass of a compressor that is told the LLM's state of the question
    (which is taken to be the whole text), the prefill with its attention and the logits of its last position, and the
    tokens generated after the first. Cached text is neither read again nor asked of again, but attended to. Batching
    changes nothing: an answer costs what it costs.
    """

    workload: Workload
    vision: VisionSide
    name = "full"
    unit = Unit.flops

    def parts(self, llm: SizedLLM, visual_tokens: float) -> Mapping[str, float]:
        facts, work = _shape_of(llm, self.name), self.workload
        layers, logits = flops.decoder(facts), flops.vocabulary_flops(facts, 1)
        cached = work.text_tokens if work.cached_text else 0
        reads_question = self.vision.conditioned and self.vision.query == "llm"
        steps, context = work.new_tokens - 1, work.text_tokens + visual_tokens
        seen = {name: part.flops for name, part in self.vision.parts(facts, visual_tokens).items()}
        return seen | {
            "query pass": layers.forward_flops(work.prefilled_text) if reads_question else 0.0,
            "prefill": layers.forward_flops(work.prefilled_text + visual_tokens, cached) + logits,
            "decode": layers.decode_flops(steps, context) + steps * logits,
        }

    def describe(self) -> str:
        return (
            f"FLOPs of tower ({self.vision.tower.name}, {self.vision.tower.image_size} px), compressor "
            f"({self.vision.compressor}) and LLM; {self.workload}"
        )


@dataclass(frozen=True)
class MemoryCost(CostModel):
    """``memory``: bytes of all weights, and of the keys and values of every token of a batch of answers.

    Activations and what libraries take for themselves are not in it.
    """

    workload: Workload
    vision: VisionSide
    dtype: Dtype = "bf16"
    name = "memory"
    unit = Unit.bytes

    def parts(self, llm: SizedLLM, visual_tokens: float) -> Mapping[str, float]:
        facts, work, size = _shape_of(llm, self.name), self.workload, DTYPE_BYTES[self.dtype]
        seen = {name: size * part.weights for name, part in self.vision.parts(facts, visual_tokens).items()}
        # The last token generated is never read, so nothing of it is kept.
        tokens = work.text_tokens + visual_tokens + work.new_tokens - 1
        cache = size * flops.kv_cache_values(facts, tokens) * work.batch_size
        return seen | {"llm": float(size * facts.num_params), "kv cache": cache}

    def describe(self) -> str:
        return f"bytes of weights and KV cache in {self.dtype}; {self.workload}"


@dataclass(frozen=True)
class LatencyCost(CostModel):
    """``latency``: milliseconds from the image to the last token of an answer, as ``vlmkit bench`` measured them.

    Between measured token counts of a measured LLM, times are interpolated linearly. Raises UserError on construction
    if the table was measured for another workload (``LatencyTable.check_workload``).
    """

    table: LatencyTable
    workload: Workload
    name = "latency"
    unit = Unit.milliseconds

    def __post_init__(self) -> None:
        self.table.check_workload(self.workload)

    def parts(self, llm: SizedLLM, visual_tokens: float) -> Mapping[str, float]:
        times = self.table.milliseconds(llm.name, visual_tokens, self.workload.text_tokens)
        return times | {"decode": (self.workload.new_tokens - 1) * times["decode"]}

    def describe(self) -> str:
        return f"ms measured on {self.table.conditions}; {self.workload}"


@dataclass(frozen=True)
class Limit:
    """A budget under the cost model that spends it."""

    model: CostModel
    budget: Budget

    def allows(self, llm: SizedLLM, visual_tokens: float) -> bool:
        """Whether a choice stays within the budget. Raises UserError as the cost model does."""
        return self.model.cost(llm, visual_tokens) <= self.budget.amount


def limits(budgets: Mapping[Unit, Budget], models: Mapping[Unit, CostModel]) -> list[Limit]:
    """Each budget under the model of its unit. Raises UserError for a unit that no model counts."""
    for unit, budget in budgets.items():
        if unit not in models:
            hint = "; measure times with `vlmkit bench` and give --latency-table" if unit is Unit.milliseconds else ""
            raise UserError(f"The budget {budget} needs a cost model that counts {unit.value}{hint}.")
    return [Limit(models[unit], budget) for unit, budget in budgets.items()]


def _shape_of(llm: SizedLLM, cost: str) -> LLMFacts:
    if not registry.is_llm(llm.name):
        raise UserError(
            f"The cost model {cost} needs the shape of {llm.name}, which is no language model of the registry; "
            "use --cost llm, or times measured by `vlmkit bench`."
        )
    return registry.llm(llm.name)
