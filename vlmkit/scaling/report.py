"""One self-contained page of the answer, whose settings a reader can move: what it has to know, and the file it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit import __version__, registry
from vlmkit.errors import UserError
from vlmkit.runs import write_atomically
from vlmkit.scaling import flops
from vlmkit.scaling.budgets import Budget, Unit
from vlmkit.scaling.candidates import Pricing, name_llms
from vlmkit.scaling.cost import DTYPE_BYTES, CostModel, FullCost, LatencyCost, LLMCost, MemoryCost, VisionSide
from vlmkit.scaling.family_law import LEVEL, FamilyLaw
from vlmkit.scaling.fit import Fit
from vlmkit.scaling.frontier import Frontier
from vlmkit.scaling.latency import Timing
from vlmkit.scaling.laws import ScalingLaw
from vlmkit.scaling.measurements import Measurement, Measurements, SizedLLM
from vlmkit.scaling.workload import Workload

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("model.js", "chart.js", "page.js", "controls.js")
_CURVE_POINTS = 40
"""Token counts at which the curve of an LLM is drawn, beside those on offer."""


@dataclass(frozen=True)
class ReportedFamily:
    """A family of benchmarks: its law, the points behind it, and what a reader must know of them.

    ``draws`` is the law of a bootstrap, its numbers arrays of shape [draws, 1]; None: no intervals.
    """

    name: str
    fit: Fit
    points: Sequence[Measurement]
    draws: ScalingLaw | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """What the page offers and where its settings stand at first.

    ``llms`` and ``tokens`` are all candidates on offer, ``chosen_llms`` (names) and ``chosen_tokens`` those considered
    at first (default: all). Of ``costs``, which all count ``workload``, the one named ``cost`` is shown (default: the
    first); where the budget of another unit is a limit beside it, the first model of that unit counts. ``mix`` has a
    weight for each family (default: equal ones). ``command`` is the command line that made the page, without the
    settings that the page has itself, ``notes`` what stands on it beside the remarks on families.
    """

    families: Sequence[ReportedFamily]
    llms: Sequence[SizedLLM]
    tokens: Sequence[int]
    costs: Sequence[CostModel]
    workload: Workload = field(default_factory=Workload)
    cost: str | None = None
    budgets: Mapping[Unit, Budget] = field(default_factory=dict)
    mix: Mapping[str, float] | None = None
    chosen_llms: Sequence[str] | None = None
    chosen_tokens: Sequence[int] | None = None
    command: str = "vlmkit frontier"
    notes: Sequence[str] = ()

    def curve_tokens(self) -> list[int]:
        """Token counts of the curves: those on offer, and as many between the least and the most as a line needs."""
        between = np.geomspace(min(self.tokens), max(self.tokens), _CURVE_POINTS).round().astype(int)
        return sorted({*self.tokens, *between.tolist()})

    def to_json(self) -> dict[str, Any]:
        """All that the page's script knows: laws, draws, points, and the costs of every LLM as coefficients."""
        curve = self.curve_tokens()
        work = self.workload
        mix = self.mix or {family.name: 1.0 for family in self.families}
        return {
            "version": __version__,
            "command": self.command,
            "level": [(1 - LEVEL) / 2, (1 + LEVEL) / 2],
            "notes": list(self.notes),
            "families": [_family(family) for family in self.families],
            "llms": [{"name": llm.name, "billions": llm.billions} for llm in self.llms],
            "tokens": list(self.tokens),
            "curve": curve,
            "costs": [
                {"name": model.name, "unit": model.unit.value, "about": _about(model)}
                | _coefficients(model, self.llms, curve)
                for model in self.costs
            ],
            "initial": {
                "cost": self.cost or self.costs[0].name,
                "budgets": {unit.value: budget.amount for unit, budget in self.budgets.items()},
                "textTokens": work.text_tokens,
                "newTokens": work.new_tokens,
                "cachedText": work.cached_text,
                "batchSize": work.batch_size,
                "mix": {family.name: float(mix.get(family.name, 0.0)) for family in self.families},
                "llms": list(self.chosen_llms or [llm.name for llm in self.llms]),
                "tokens": list(self.chosen_tokens or self.tokens),
            },
        }


def report_of(frontier: Frontier, measurements: Measurements, command: str = "vlmkit frontier") -> Report:
    """The page of an answer: its laws, its costs and all others that are known, and, beside its candidates, the other
    LLMs of their series.

    Raises UserError for several compressors, whose costs differ, and for questions that no budget answers.
    """
    question, pricing = frontier.question, frontier.pricing
    if question.continuous or question.compare or question.target_error is not None:
        raise UserError(
            "The page chooses among LLMs and token counts for a budget: leave --continuous, --compare and "
            "--target-error out, or --html."
        )
    laws = [found.law for found in frontier.answers if isinstance(found.law, FamilyLaw)]
    labels = dict.fromkeys(law.example.compressor_label or "no compressor named" for law in laws)
    if len(labels) > 1:
        raise UserError(f"The page is of one compressor, not of {'; '.join(labels)}: give the measurements of one.")
    considered = [candidate for found in frontier.answers for candidate in found.considered]
    chosen = {candidate.llm.name: candidate.llm for candidate in considered}
    series = dict.fromkeys(registry.llm(name).family for name in chosen if registry.is_llm(name))
    llms = chosen | {llm.name: llm for llm in name_llms(measurements, series)}
    counts = {candidate.visual_tokens for candidate in considered}
    return Report(
        [_reported(law, measurements) for law in laws],
        sorted(llms.values(), key=lambda llm: llm.billions),
        sorted(counts.union(*(law.counts for law in laws))),
        _known_costs(pricing, bool(series)),
        pricing.workload,
        pricing.primary.name,
        pricing.budgets,
        question.mix or None,
        list(chosen),
        sorted(counts),
        command,
        [f"No law for {name}: {reason}" for name, reason in frontier.unanswered.items()],
    )


def _reported(law: FamilyLaw, measurements: Measurements) -> ReportedFamily:
    notes = [*law.doubts, *measurements.notes.get(law.name, ())]
    draws = law.bootstrap.laws if law.bootstrap else None
    return ReportedFamily(law.name, law.fit, law.rows, draws, notes)


def _known_costs(pricing: Pricing, has_shapes: bool) -> list[CostModel]:
    work, vision = pricing.workload, pricing.vision
    models: list[CostModel] = [LLMCost(work)]
    if has_shapes and vision.tower.timm_network is None:
        models += [FullCost(work, vision), MemoryCost(work, vision)]
    if pricing.table is not None:
        models.append(LatencyCost(pricing.table, work))
    return models


def check_page(path: str | Path) -> None:
    """Raise UserError unless ``path`` ends in .html."""
    if Path(path).suffix != ".html":
        raise UserError(f"The page {path} must end in .html.")


def write_report(report: Report, path: str | Path) -> None:
    """Write the page, whole or not at all. It needs no network: styles, script and data are in the file.

    Raises UserError for a name that does not end in ``.html``.
    """
    check_page(path)
    # A closing tag inside a string would end the element that holds the data.
    data = json.dumps(report.to_json(), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = (_PAGE / "page.html").read_text(encoding="utf-8")
    parts = {
        "STYLE": (_PAGE / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": "\n".join((_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "DATA": data,
    }
    for name, text in parts.items():
        page = page.replace(f"[[{name}]]", text)
    write_atomically(Path(path), page)


def _family(family: ReportedFamily) -> dict[str, Any]:
    fit, draws = family.fit, family.draws
    return {
        "name": family.name,
        "form": fit.law.form,
        "law": fit.law.parameters,
        "draws": draws and {name: np.ravel(values).tolist() for name, values in draws.parameters.items()},
        "formula": fit.law.formula(),
        "worst": fit.max_relative_error,
        "sizes": fit.sizes,
        "measuredTokens": fit.tokens,
        "points": [[row.llm.name, row.visual_tokens, row.error] for row in family.points],
        "notes": list(family.notes),
    }


def _about(model: CostModel) -> str:
    """What is counted, whatever the workload."""
    if isinstance(model, FullCost):
        tower = model.vision.tower
        return (
            f"All matrix products of one answer: tower ({tower.name}, {tower.image_size} px), compressor "
            f"({model.vision.compressor}), prefill and generated tokens."
        )
    if isinstance(model, MemoryCost):
        return f"Bytes of all weights and of the keys and values of every token, in {model.dtype}."
    if isinstance(model, LatencyCost):
        return f"Milliseconds measured on {model.table.conditions}."
    return "2N(Q + V) FLOPs of the LLM's prefill, and nothing else (arXiv 2411.03312)."


def _coefficients(model: CostModel, llms: Sequence[SizedLLM], curve: Sequence[int]) -> dict[str, Any]:
    """A cost model as the script computes it: ``llms`` has the numbers of each LLM whose cost the model knows."""
    if isinstance(model, FullCost):
        reads = model.vision.conditioned and model.vision.query == "llm"
        shapes = {llm.name: _full(llm.name, model.vision, curve) for llm in llms if registry.is_llm(llm.name)}
        return {"readsQuestion": reads, "llms": shapes}
    if isinstance(model, MemoryCost):
        return {"llms": {llm.name: _memory(llm.name, model, curve) for llm in llms if registry.is_llm(llm.name)}}
    if isinstance(model, LatencyCost):
        work, measured = model.table.workload, set(model.table.llms)
        fixed = {"cachedText": work.cached_text, "batchSize": work.batch_size}
        return {
            "textTokens": work.text_tokens,
            "fixed": fixed | ({"textTokens": work.text_tokens} if model.table.fixes_text else {}),
            "llms": {llm.name: _times(model.table.of(llm.name)) for llm in llms if llm.name in measured},
        }
    if isinstance(model, LLMCost):
        return {"llms": {llm.name: {"billions": llm.billions} for llm in llms}}
    raise TypeError(f"the page has no script for the cost model {model.name}")


def _full(name: str, vision: VisionSide, curve: Sequence[int]) -> dict[str, Any]:
    facts = registry.llm(name)
    layers = flops.decoder(facts)
    return {
        "perToken": 2 * layers.matrix_weights,
        "perPair": 4 * layers.layers * layers.attention_width,
        "logits": flops.vocabulary_flops(facts, 1),
        "vision": [sum(part.flops for part in parts) for parts in _vision(name, vision, curve)],
    }


def _memory(name: str, model: MemoryCost, curve: Sequence[int]) -> dict[str, Any]:
    facts, size = registry.llm(name), DTYPE_BYTES[model.dtype]
    return {
        "weights": size * facts.num_params,
        "perToken": size * flops.kv_cache_values(facts, 1),
        "vision": [size * sum(part.weights for part in parts) for parts in _vision(name, model.vision, curve)],
    }


def _vision(name: str, vision: VisionSide, curve: Sequence[int]) -> list[list[flops.Part]]:
    """Tower and compressor for each token count of the curve, as far as the image has patches for it."""
    known = [count for count in curve if count <= vision.tower.num_patches]
    return [list(vision.parts(registry.llm(name), count).values()) for count in known]


def _times(rows: Sequence[Timing]) -> dict[str, Any]:
    """Milliseconds at each measured token count: until the LLM begins, its prefill, and each token after the first."""
    return {
        "tokens": [row.visual_tokens for row in rows],
        "seen": [row.answer(new_tokens=1) - row.median("prefill") for row in rows],
        "prefill": [row.median("prefill") for row in rows],
        "next": [row.median("decode") for row in rows],
    }
