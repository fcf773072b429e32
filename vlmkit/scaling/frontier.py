"""What to deploy: the LLM and the number of visual tokens with the least predicted error under a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmkit.errors import UserError
from vlmkit.scaling.budgets import format_flops, format_params
from vlmkit.scaling.fit import Fit, fit_law
from vlmkit.scaling.flops import prefill_flops
from vlmkit.scaling.measurements import Measurement, Measurements, SizedLLM, load_published

PUBLISHED_CANDIDATES = ("qwen1.5-0.5b", "qwen1.5-1.8b", "qwen1.5-4b", "qwen1.5-7b", "qwen1.5-14b")
"""Sizes the paper fits (0.5B to 7B) or validates (14B); larger ones are an extrapolation that has to be asked for."""


@dataclass(frozen=True)
class Candidate:
    """One choice: an LLM and a number of visual tokens, with its cost and the error the law predicts."""

    llm: SizedLLM
    visual_tokens: int
    flops: float
    error: float

    def to_json(self) -> dict[str, Any]:
        return {
            "llm": self.llm.name,
            "num_params": self.llm.num_params,
            "visual_tokens": self.visual_tokens,
            "flops": self.flops,
            "error": self.error,
        }


@dataclass(frozen=True)
class FamilyAnswer:
    """The law of one family of benchmarks and the choices, best first.

    ``considered`` are all candidates, ``candidates`` those within the budget (there is at least one).
    """

    family: str
    measurements: tuple[Measurement, ...]
    fit: Fit
    optimal_visual_tokens: float
    considered: tuple[Candidate, ...]
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    def best_within(self, budget: float) -> Candidate | None:
        """The best candidate that costs at most ``budget`` FLOPs, if there is one."""
        return next((candidate for candidate in self.candidates if candidate.flops <= budget), None)

    def to_json(self, top: int) -> dict[str, Any]:
        law = self.fit.law
        return {
            "law": {
                "form": law.form,
                "coefficients": law.coefficients,
                "exponents": {"alpha": law.alpha, "beta": law.beta},
                "floor": law.floor,
                "max_relative_error": self.fit.max_relative_error,
            },
            "optimal_visual_tokens": self.optimal_visual_tokens,
            "best": self.best.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates[:top]],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Frontier:
    """The answer for every family. ``budget`` is in FLOPs; None: no limit.

    ``unfitted`` gives the reason for each family that cannot identify a law.
    """

    budget: float | None
    text_tokens: int
    families: tuple[FamilyAnswer, ...]
    unfitted: Mapping[str, str]

    def budgets(self, count: int = 8) -> list[float]:
        """At most ``count`` budgets in FLOPs, evenly spaced in their logarithm over the costs of the candidates.

        A budget at which no family's best choice differs from that at the budget before is left out.
        """
        costs = [candidate.flops for answer in self.families for candidate in answer.candidates]
        choices: dict[tuple[Candidate | None, ...], float] = {}
        for budget in map(_round_up, np.geomspace(min(costs), max(costs), count)):
            choices.setdefault(tuple(answer.best_within(budget) for answer in self.families), budget)
        return list(choices.values())

    def to_json(self, top: int) -> dict[str, Any]:
        """One JSON-ready object with ``top`` candidates a family; without a budget also the best at several budgets."""
        families = {answer.family: answer.to_json(top) for answer in self.families}
        if self.budget is None:
            for answer in self.families:
                best = {budget: answer.best_within(budget) for budget in self.budgets()}
                families[answer.family]["frontier"] = [
                    {"budget": budget, **choice.to_json()} for budget, choice in best.items() if choice
                ]
        return {"budget": self.budget, "text_tokens": self.text_tokens, "families": families}


def find_frontier(
    measurements: Measurements | None = None,
    *,
    budget: float | None = None,
    text_tokens: int = 50,
    llms: Sequence[str] | None = None,
    tokens: Sequence[int] | None = None,
) -> Frontier:
    """Fit the product law to every family and rank the candidates within the budget by predicted error.

    ``measurements`` default to the published ones. Candidates are ``llms`` by name (default: the measured ones; for the
    published measurements Qwen1.5 up to 14B) with each number of visual tokens in ``tokens`` (default: the family's
    measured ones); the cost is 2 N (Q + V) with Q = ``text_tokens``. Raises UserError where no family can identify
    the law, where an LLM is unknown and where the budget is below the cheapest candidate.
    """
    if text_tokens < 0:
        raise UserError(f"The number of text tokens is {text_tokens}; it cannot be negative (0: the text is cached).")
    if tokens and min(tokens) < 1:
        raise UserError(f"A candidate has {min(tokens)} visual tokens; it needs at least 1.")
    if measurements is None:
        measurements, llms = load_published(), llms or PUBLISHED_CANDIDATES
    sized = [measurements.find_llm(name) for name in llms] if llms else measurements.llms
    fits: dict[str, Fit] = {}
    unfitted = dict(measurements.missing)
    for family in measurements.families:
        rows = measurements.of(family)
        sizes, counts = [row.llm.billions for row in rows], [row.visual_tokens for row in rows]
        try:
            fits[family] = fit_law("product", sizes, counts, [row.error for row in rows])
        except UserError as error:
            unfitted[family] = str(error)
    if not fits:
        reasons = dict.fromkeys(unfitted.values())
        raise UserError(" ".join(reasons))
    answers = tuple(
        _answer(measurements, family, fit, budget, text_tokens, sized, tokens) for family, fit in fits.items()
    )
    return Frontier(budget, text_tokens, answers, unfitted)


def _round_up(value: float) -> float:
    """``value`` with two significant digits, never below it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def _answer(
    measurements: Measurements,
    family: str,
    fit: Fit,
    budget: float | None,
    text_tokens: int,
    llms: Sequence[SizedLLM],
    tokens: Sequence[int] | None,
) -> FamilyAnswer:
    rows = measurements.of(family)
    counts = sorted(set(tokens or [row.visual_tokens for row in rows]))
    everything = [
        Candidate(
            llm, count, prefill_flops(llm.billions, count, text_tokens), float(fit.law.predict(llm.billions, count))
        )
        for llm in llms
        for count in counts
    ]
    everything.sort(key=lambda candidate: (candidate.error, candidate.flops))
    affordable = [candidate for candidate in everything if budget is None or candidate.flops <= budget]
    if not affordable:
        cheapest = min(everything, key=lambda candidate: candidate.flops)
        raise UserError(
            f"No candidate fits in {format_flops(budget or 0)}: the cheapest (LLM {cheapest.llm.name}, visual tokens "
            f"{cheapest.visual_tokens}, text tokens {text_tokens}) costs {format_flops(cheapest.flops)}; "
            "raise the budget or offer smaller candidates."
        )
    notes = [
        *_fit_notes(fit, affordable),
        *measurements.notes.get(family, ()),
        *_extrapolation_notes(fit, affordable),
        _BASIS_NOTES[measurements.basis],
    ]
    optimum = fit.law.optimal_visual_tokens(text_tokens, (counts[0], counts[-1]))
    assert optimum is not None, "the product law's optimum is the same at any budget"
    return FamilyAnswer(family, tuple(rows), fit, float(optimum), tuple(everything), tuple(affordable), tuple(notes))


_BASIS_NOTES = {
    "nominal": "Law and cost use the size in the LLM's name; the parameters listed are its actual weights.",
    "non-embedding": "Law and cost use non-embedding LLM parameters; the parameters listed are all weights.",
}


def _fit_notes(fit: Fit, ranked: Sequence[Candidate]) -> list[str]:
    notes = []
    law, worst = fit.law, fit.max_relative_error
    for name, thing in (("alpha", "larger LLMs"), ("beta", "more visual tokens")):
        if name in fit.at_bound:
            notes.append(
                f"{name} is at the end of its range ({getattr(law, name):.3g}): in these measurements the error does "
                f"not fall with {thing} as a power law would."
            )
    if fit.at_bound == ("D",):
        notes.append(
            f"The floor D is on its bound 0, so trust the ratio alpha/beta = {law.alpha / law.beta:.2f} "
            "more than either exponent."
        )
    ties = sum(candidate.error <= ranked[0].error * (1 + worst) for candidate in ranked[1:])
    if ties:
        notes.append(
            f"The law misses measured points by up to {worst:.1%}, and {ties} other choice{'s' * (ties > 1)} "
            f"{'are' if ties > 1 else 'is'} predicted within that of the best: treat them as equal."
        )
    return notes


def _extrapolation_notes(fit: Fit, candidates: Sequence[Candidate]) -> list[str]:
    notes = []
    llms = {c.llm.name: c.llm.billions for c in candidates if not fit.sizes[0] <= c.llm.billions <= fit.sizes[1]}
    counts = sorted({c.visual_tokens for c in candidates if not fit.tokens[0] <= c.visual_tokens <= fit.tokens[1]})
    if llms:
        low, high = fit.sizes
        notes.append(
            f"Extrapolated in size: {', '.join(llms)} (measured {format_params(low * 1e9)} to "
            f"{format_params(high * 1e9)})."
        )
    if counts:
        low, high = fit.tokens
        notes.append(f"Extrapolated in tokens: {', '.join(map(str, counts))} (measured {low:.0f} to {high:.0f}).")
    return notes
