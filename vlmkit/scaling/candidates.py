"""What could be deployed, and at what cost: candidates, and which of them the budgets allow."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.scaling.budgets import Budget, Unit, format_params
from vlmkit.scaling.cost import CostModel, FullCost, LatencyCost, Limit, LLMCost, MemoryCost, VisionSide, limits
from vlmkit.scaling.latency import LatencyTable
from vlmkit.scaling.measurements import Measurement, Measurements, SizedLLM
from vlmkit.scaling.workload import Workload

CostName = Literal["llm", "full", "latency", "memory"]
_CONTINUOUS_COUNTS = 120
"""Token counts tried, in even ratios, between the fewest and the most where LLMs come in every size."""


@dataclass(frozen=True)
class Candidate:
    """An LLM and a number of visual tokens, with its cost under each model in use, by the model's name."""

    llm: SizedLLM
    visual_tokens: int
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Pricing:
    """What choices cost and may cost.

    ``cost`` is the model that choices are shown by; the other budgets limit what the model of their unit counts. By
    default it is that of the first budget, FLOPs being the paper's 2 N (Q + V). Raises UserError for milliseconds
    without a latency table.
    """

    budgets: Mapping[Unit, Budget] = field(default_factory=dict)
    cost: CostName | None = None
    workload: Workload = field(default_factory=Workload)
    vision: VisionSide = field(default_factory=VisionSide.of)
    follows_measured: bool = True
    """Whether the compressor is the one that was measured, where that is known."""
    table: LatencyTable | None = None

    def __post_init__(self) -> None:
        if self.cost == "latency" and self.table is None:
            raise UserError("Costs in milliseconds are measured ones: run `vlmkit bench` and give --latency-table.")
        self.limits  # noqa: B018 - refuses budgets that no model counts

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """The budgets, each under its model."""
        models: dict[Unit, CostModel] = {
            Unit.flops: FullCost(self.workload, self.vision) if self.cost == "full" else LLMCost(self.workload),
            Unit.bytes: MemoryCost(self.workload, self.vision),
        }
        if self.table is not None:
            models[Unit.milliseconds] = LatencyCost(self.table, self.workload)
        return tuple(limits(self.budgets, models))

    @cached_property
    def primary(self) -> CostModel:
        """The cost that choices are shown and, at equal error, preferred by."""
        if self.cost is None:
            return self.limits[0].model if self.limits else LLMCost(self.workload)
        if self.cost == "llm":
            return LLMCost(self.workload)
        if self.cost == "latency":
            assert self.table is not None, "refused on construction"
            return LatencyCost(self.table, self.workload)
        return {"full": FullCost, "memory": MemoryCost}[self.cost](self.workload, self.vision)

    @property
    def models(self) -> list[CostModel]:
        """All models in use, the primary one first."""
        return list({model.name: model for model in (self.primary, *(limit.model for limit in self.limits))}.values())

    @property
    def budget(self) -> float | None:
        """The budget in the unit of the primary cost."""
        found = self.budgets.get(self.primary.unit)
        return found.amount if found else None

    @property
    def prefill_budget(self) -> float | None:
        """FLOPs of 2 N (Q + V), where that is what is limited: the closed form of the best V holds for them alone."""
        return next((limit.budget.amount for limit in self.limits if limit.model.name == "llm"), None)

    def behind(self, measured: Measurement) -> Pricing:
        """The same with the compressor of a measurement, if that is wanted and its name is known."""
        if not self.follows_measured or measured.compressor not in registry.COMPRESSORS:
            return self
        vision = replace(self.vision, compressor=measured.compressor)
        return replace(self, vision=replace(vision, query=measured.query) if measured.query else vision)

    def price(self, llm: SizedLLM, visual_tokens: int) -> Candidate:
        """Raises UserError where a model cannot know the cost."""
        return Candidate(llm, visual_tokens, {model.name: model.cost(llm, visual_tokens) for model in self.models})

    def try_price(self, llm: SizedLLM, visual_tokens: int) -> Candidate | None:
        """None where a model cannot know the cost."""
        try:
            return self.price(llm, visual_tokens)
        except UserError:
            return None

    def allows(self, candidate: Candidate) -> bool:
        """Whether a candidate stays within all budgets."""
        return all(candidate.costs[limit.model.name] <= limit.budget.amount for limit in self.limits)

    def check_affordable(self, candidates: Sequence[Candidate]) -> None:
        """Raise UserError, naming the cheapest, if no candidate stays within the budgets."""
        if any(map(self.allows, candidates)):
            return
        left = list(candidates)
        for limit in self.limits:
            name = limit.model.name
            cheapest = min(left, key=lambda candidate: candidate.costs[name])
            left = [candidate for candidate in left if candidate.costs[name] <= limit.budget.amount]
            if not left:
                among = " among those within the other budgets" if limit is not self.limits[0] else ""
                raise UserError(
                    f"No candidate fits in {limit.budget} of cost {name}: the cheapest{among} (LLM "
                    f"{cheapest.llm.name}, visual tokens {cheapest.visual_tokens}; {self.workload}) costs "
                    f"{limit.model.format(cheapest.costs[name])}; raise the budget or offer smaller candidates."
                )


def name_llms(measurements: Measurements, names: Iterable[str]) -> list[SizedLLM]:
    """LLMs by name: measured ones, those of the registry (with aliases), and all of a family of it (``qwen1.5``).

    Raises UserError for an unknown name, with the nearest ones.
    """
    measured = {llm.name for llm in measurements.llms}
    families: dict[str, list[str]] = {}
    for facts in registry.LLMS.values():
        families.setdefault(facts.family, []).append(facts.name)
    found: dict[str, SizedLLM] = {}
    for name in names:
        known = name in measured or registry.is_llm(name)
        members = [name] if known else families.get(name.lower(), [])
        if not members:
            options = sorted({*measured, *registry.LLMS, *families})
            near = difflib.get_close_matches(name.lower(), options, n=3, cutoff=0.4) or sorted(families)
            raise UserError(
                f"There is no language model or family of them named {name!r}; did you mean {', '.join(near)}? "
                "`vlmkit models` lists all."
            )
        found |= {llm.name: llm for llm in map(measurements.find_llm, members)}
    return list(found.values())


def offer(
    llms: Iterable[SizedLLM], counts: Iterable[int], pricing: Pricing, asked_for: bool
) -> tuple[list[Candidate], list[str]]:
    """Every LLM with every number of visual tokens, and why some were left out.

    Those whose cost no model knows are left out, unless they were ``asked_for``, or are all there are: UserError.
    """
    candidates, reasons = [], []
    pairs = [(llm, count) for llm in llms for count in counts]
    for llm, count in pairs:
        try:
            candidates.append(pricing.price(llm, count))
        except UserError as error:
            if asked_for:
                raise
            reasons.append(str(error))
    if not candidates:
        raise UserError(reasons[0])
    notes = (
        [f"{len(reasons)} of {len(pairs)} candidates are left out, the first because: {reasons[0]}"] if reasons else []
    )
    return candidates, notes


def offer_every_size(counts: tuple[int, int], pricing: Pricing) -> list[Candidate]:
    """Token counts from the fewest to the most, each with an LLM of just the size that spends a budget of FLOPs.

    Raises UserError without a budget of the cost model llm, or with another: other costs need the shape of an LLM.
    """
    budget = pricing.prefill_budget
    if budget is None or len(pricing.models) > 1:
        raise UserError(
            "LLMs of every size (--continuous) have no shape, so only 2 N (Q + V) is known of their cost: give one "
            "budget in FLOPs and --cost llm, or leave --continuous out."
        )
    steps = sorted({*np.round(np.geomspace(*counts, _CONTINUOUS_COUNTS)).astype(int).tolist()})
    sizes = [budget / (2e9 * (pricing.workload.prefilled_text + count)) for count in steps]
    return [
        Candidate(SizedLLM(format_params(size * 1e9), size, round(size * 1e9)), count, {"llm": budget})
        for size, count in zip(sizes, steps, strict=True)
    ]
