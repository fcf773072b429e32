"""The answer for one family or mix: choices in order, with what they cost, lose and risk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmkit.errors import UserError
from vlmkit.scaling.bootstrap import Interval
from vlmkit.scaling.budgets import format_params
from vlmkit.scaling.candidates import Candidate, Pricing
from vlmkit.scaling.family_law import LEVEL, FamilyLaw, Optimum, Predictor
from vlmkit.scaling.fit import Fit
from vlmkit.scaling.laws import FloatArray
from vlmkit.scaling.measurements import SizedLLM

_NAMED = 5
"""LLMs that a note names one by one."""


@dataclass(frozen=True)
class Choice:
    """A candidate and its predicted error.

    ``interval`` is that of the law's prediction, 95 %. ``behind`` says by which fraction its error (with a target: its
    cost) exceeds that of the best. ``probability`` is the share of bootstrap draws in which no choice has
    a smaller error (with a target: in which it reaches the target). Both intervals and probabilities are None without a
    bootstrap. ``extrapolated`` names what lies outside the measurements: ``size``, ``tokens``.
    """

    candidate: Candidate
    error: float
    interval: Interval | None
    behind: float
    probability: float | None
    extrapolated: tuple[str, ...]
    affordable: bool

    @property
    def llm(self) -> SizedLLM:
        return self.candidate.llm

    @property
    def visual_tokens(self) -> int:
        return self.candidate.visual_tokens

    @property
    def costs(self) -> Mapping[str, float]:
        return self.candidate.costs

    def to_json(self) -> dict[str, Any]:
        return {
            "llm": self.llm.name,
            "num_params": self.llm.num_params,
            "visual_tokens": self.visual_tokens,
            "costs": dict(self.costs),
            "error": self.error,
            "interval": self.interval,
            "behind": self.behind,
            "probability": self.probability,
            "extrapolated": list(self.extrapolated),
            "affordable": self.affordable,
        }


@dataclass(frozen=True)
class Answer:
    """Choices of one family or mix, best first: by predicted error, or, with a ``target``, by cost among those that
    are predicted to reach it. There is at least one. ``considered`` are all candidates, within the budgets or not.
    ``optimum`` is for LLMs of every size under 2 N (Q + V), whatever the cost model.
    """

    law: Predictor
    pricing: Pricing
    target: float | None
    considered: tuple[Candidate, ...]
    choices: tuple[Choice, ...]
    optimum: Optimum | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.law.name

    @property
    def best(self) -> Choice:
        return self.choices[0]

    def best_within(self, budget: float) -> Choice | None:
        """The best choice of at most ``budget`` primary cost, if there is one."""
        primary = self.pricing.primary.name
        return next((choice for choice in self.choices if choice.costs[primary] <= budget), None)

    def to_json(self, top: int) -> dict[str, Any]:
        optimum = self.optimum
        return {
            **(_law_json(self.law) if isinstance(self.law, FamilyLaw) else {}),
            "target_error": self.target,
            "optimal_visual_tokens": optimum and optimum.visual_tokens,
            "optimal_visual_tokens_interval": optimum and optimum.interval,
            "best": self.best.to_json(),
            "choices": [choice.to_json() for choice in self.choices[:top]],
            "notes": list(self.notes),
        }


def _law_json(family: FamilyLaw) -> dict[str, Any]:
    fit, law, robust, bootstrap = family.fit, family.fit.law, family.robust, family.bootstrap
    intervals = bootstrap.parameters(LEVEL) if bootstrap else {}
    return {
        "law": {
            "form": law.form,
            "parameters": law.parameters,
            "intervals": {name: _finite(interval) for name, interval in intervals.items()},
            "ratio": _finite([float(law.ratio(*fit.middle))])[0],
            "ratio_interval": bootstrap and _finite(bootstrap.ratio(LEVEL)),
            "ratio_interval_by_size": family.ratio_by_size and _finite(family.ratio_by_size),
            "max_relative_error": fit.max_relative_error,
            "left_out": {axis: left.largest for axis, left in family.left_out.items()},
            "at_bound": list(fit.at_bound),
            "weighted": family.weighted,
            "aicc": family.comparison
            and dict(zip(family.comparison.aicc, _finite(family.comparison.aicc.values()), strict=True)),
            "huber_parameters": robust and robust.law.parameters,
        }
    }


def _finite(values: Iterable[float]) -> list[float | None]:
    """JSON has no infinity: None stands for a ratio to an exponent of 0."""
    return [value if math.isfinite(value) else None for value in values]


def answer(
    law: Predictor,
    candidates: Sequence[Candidate],
    pricing: Pricing,
    *,
    target: float | None = None,
    keep_unaffordable: bool = False,
    notes: Sequence[str] = (),
) -> Answer:
    """Rank the candidates that the budgets allow (``keep_unaffordable``: all, to compare them).

    Raises UserError if there are none, or none is predicted to reach the ``target``.
    """
    if not keep_unaffordable:
        pricing.check_affordable(candidates)
    allowed = [candidate for candidate in candidates if keep_unaffordable or pricing.allows(candidate)]
    N = np.array([candidate.llm.billions for candidate in allowed])
    V = np.array([candidate.visual_tokens for candidate in allowed], dtype=np.float64)
    errors, drawn = law.predict(N, V), law.draws(N, V)
    costs = np.array([candidate.costs[pricing.primary.name] for candidate in allowed])
    order = np.lexsort((costs, errors)) if target is None else np.lexsort((errors, costs))
    if target is not None:
        order = order[errors[order] <= target]
        if not len(order):
            closest = allowed[int(errors.argmin())]
            raise UserError(
                f"No candidate is predicted to reach an error of {target:g} in {law.name}: the closest is LLM "
                f"{closest.llm.name} with {closest.visual_tokens} visual tokens at {errors.min():.4f}; offer larger "
                "LLMs, more visual tokens or a larger budget."
            )
    amounts = errors if target is None else costs
    behind = amounts / amounts[order[0]] - 1
    probabilities, lows, highs = _by_draws(drawn, target)
    choices = tuple(
        Choice(
            allowed[i],
            float(errors[i]),
            None if drawn is None else (float(lows[i]), float(highs[i])),
            float(behind[i]),
            None if drawn is None else float(probabilities[i]),
            _extrapolated(law, allowed[i]),
            pricing.allows(allowed[i]),
        )
        for i in order
    )
    counts = [*law.counts, *(candidate.visual_tokens for candidate in candidates)]
    optimum = law.optimum(pricing.workload.prefilled_text, (min(counts), max(counts)), pricing.prefill_budget)
    found = (*_agreement(law, choices, target, bool(pricing.limits)), *_extrapolations(law, choices), *notes)
    return Answer(law, pricing, target, tuple(candidates), choices, optimum, found)


def _by_draws(drawn: FloatArray | None, target: float | None) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Of errors [draws, k]: probabilities, low and high ends [k]."""
    if drawn is None:
        return np.empty(0), np.empty(0), np.empty(0)
    met = drawn == drawn.min(1, keepdims=True) if target is None else drawn <= target
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="inverted_cdf")
    return met.mean(0), low, high


def _extrapolated(law: Predictor, candidate: Candidate) -> tuple[str, ...]:
    inside = {
        "size": law.sizes[0] <= candidate.llm.billions <= law.sizes[1],
        "tokens": law.tokens[0] <= candidate.visual_tokens <= law.tokens[1],
    }
    return tuple(axis for axis, is_inside in inside.items() if not is_inside)


def _agreement(law: Predictor, choices: Sequence[Choice], target: float | None, limited: bool) -> list[str]:
    """Which other choices the law cannot tell from the best, and what Huber's loss says."""
    if not isinstance(law, FamilyLaw):
        return []
    notes = []
    worst, best = law.fit.max_relative_error, choices[0]
    ties = sum(choice.error <= best.error * (1 + worst) for choice in choices[1:])
    if ties and limited and target is None and law.fit.describes:
        notes.append(
            f"{ties} other choice{'s are' if ties > 1 else ' is'} predicted within {worst:.1%} of the best, by which "
            "the law misses measured points: treat them as equal."
        )
    if law.robust is not None:
        notes.append(_robustness(law.fit, law.robust, choices, target))
    return notes


def _robustness(fit: Fit, robust: Fit, choices: Sequence[Choice], target: float | None) -> str:
    ratio = float(robust.law.ratio(*fit.middle))
    notes = f"By Huber's loss: error = {robust.law.formula()}, alpha/beta {ratio:.2f}"
    if target is not None:
        return f"{notes}, and an error of {robust.law.predict(choices[0].llm.billions, choices[0].visual_tokens):.4f}."
    best = min(choices, key=lambda choice: float(robust.law.predict(choice.llm.billions, choice.visual_tokens)))
    same = best is choices[0]
    found = "the same best choice" if same else f"{best.llm.name} with {best.visual_tokens} tokens as the best choice"
    return f"{notes}, and {found}."


def _extrapolations(law: Predictor, choices: Sequence[Choice]) -> list[str]:
    notes = []
    llms = dict.fromkeys(choice.llm.name for choice in choices if "size" in choice.extrapolated)
    counts = sorted({choice.visual_tokens for choice in choices if "tokens" in choice.extrapolated})
    if llms:
        low, high = (format_params(end * 1e9) for end in law.sizes)
        names = ", ".join(llms) if len(llms) <= _NAMED else f"{len(llms)} LLMs"
        notes.append(f"* Extrapolated in size: {names} (measured {low} to {high}).")
    if counts:
        low, high = (f"{end:.0f}" for end in law.tokens)
        notes.append(f"* Extrapolated in tokens: {', '.join(map(str, counts))} (measured {low} to {high}).")
    return notes
