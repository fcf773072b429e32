"""What to deploy: the LLM and the number of visual tokens with the least predicted error under a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlmkit.errors import UserError
from vlmkit.scaling.answer import Answer, answer
from vlmkit.scaling.candidates import Pricing, name_llms, offer, offer_every_size
from vlmkit.scaling.family_law import FamilyLaw, LawName, Mix, Predictor, fit_family
from vlmkit.scaling.fit import Loss
from vlmkit.scaling.measurements import Basis, Measurements, SizedLLM, load_published

PUBLISHED_CANDIDATES = ("qwen1.5-0.5b", "qwen1.5-1.8b", "qwen1.5-4b", "qwen1.5-7b", "qwen1.5-14b")
"""Sizes the paper fits (0.5B to 7B) or validates (14B); larger ones are an extrapolation that has to be asked for."""
MIX = "mix"


@dataclass(frozen=True)
class Question:
    """What is asked: under which costs, of which candidates, for which families.

    Candidates are ``llms`` by name (default: the measured ones; for the published measurements Qwen1.5 up to 14B) with
    each number of visual tokens in ``tokens`` (default: those measured); or LLMs of every size (``continuous``); or the
    pairs in ``compare``, whatever they cost. ``mix`` gives families weights, and so a mean of their errors as one more
    answer. ``target_error`` turns the question round: the least cost that is predicted to reach it, one for all answers
    or by name. Raises UserError for what contradicts itself.
    """

    pricing: Pricing = field(default_factory=Pricing)
    llms: Sequence[str] | None = None
    tokens: Sequence[int] | None = None
    continuous: bool = False
    compare: Sequence[tuple[str, int]] = ()
    mix: Mapping[str, float] = field(default_factory=dict)
    target_error: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        counts = [*(self.tokens or ()), *(count for _, count in self.compare)]
        if counts and min(counts) < 1:
            raise UserError(f"A candidate has {min(counts)} visual tokens; it needs at least 1.")
        if self.compare and (self.llms or self.tokens or self.continuous):
            raise UserError("The choices to compare are all candidates: leave --llms, --tokens and --continuous out.")
        if self.continuous and (self.llms or self.target_error is not None):
            raise UserError("--continuous takes LLMs of every size at a budget: leave --llms and --target-error out.")
        if any(not (math.isfinite(weight) and weight > 0) for weight in self.mix.values()):
            raise UserError("The weights of a mix must be positive; leave out families that do not matter.")
        targets = self.target_error.values() if isinstance(self.target_error, Mapping) else [self.target_error]
        if any(target is not None and not 0 < target < 1 for target in targets):
            raise UserError("An error to reach is 1 - score, so between 0 and 1, like 0.5.")

    def target(self, name: str) -> float | None:
        """The error that the answer ``name`` is to reach."""
        return self.target_error.get(name) if isinstance(self.target_error, Mapping) else self.target_error


@dataclass(frozen=True)
class Frontier:
    """The answers: families in the order of the measurements, then the mix, one for each compressor that was measured.

    ``unanswered`` gives the reason for each family or mix without an answer.
    """

    question: Question
    basis: Basis
    answers: tuple[Answer, ...]
    unanswered: Mapping[str, str]

    @property
    def pricing(self) -> Pricing:
        return self.answers[0].pricing

    @property
    def asks_for_range(self) -> bool:
        """Whether there is neither a budget nor anything else to choose by: then the answer is one for each budget."""
        question = self.question
        return not (question.pricing.budgets or question.compare or question.target_error is not None)

    def budgets(self, count: int = 8) -> list[float]:
        """At most ``count`` budgets of primary cost, evenly spaced in their logarithm over the costs of the choices.

        A budget at which no best choice differs from that at the budget before is left out.
        """
        primary = self.pricing.primary.name
        costs = [choice.costs[primary] for found in self.answers for choice in found.choices]
        choices: dict[tuple[Any, ...], float] = {}
        for budget in map(_round_up, np.geomspace(min(costs), max(costs), count)):
            best = [found.best_within(budget) for found in self.answers]
            choices.setdefault(tuple(choice and (choice.llm, choice.visual_tokens) for choice in best), budget)
        return list(choices.values())

    def to_json(self, top: int) -> dict[str, Any]:
        """One JSON-ready object with ``top`` choices an answer; of a range also the best at each budget."""
        answers = {found.name: found.to_json(top) for found in self.answers}
        if self.asks_for_range:
            for found in self.answers:
                best = {budget: found.best_within(budget) for budget in self.budgets()}
                answers[found.name]["frontier"] = [
                    {"budget": budget, **choice.to_json()} for budget, choice in best.items() if choice
                ]
        pricing = self.pricing
        return {
            "budgets": {unit.value: budget.amount for unit, budget in pricing.budgets.items()},
            "cost": pricing.primary.name,
            "workload": vars(pricing.workload),
            "basis": self.basis,
            "answers": answers,
            "unanswered": dict(self.unanswered),
        }


def find_frontier(
    measurements: Measurements | None = None,
    question: Question | None = None,
    *,
    law: LawName = "product",
    loss: Loss = "squared",
) -> Frontier:
    """Fit a law to every family of the measurements (default: the published ones) and answer the question.

    ``law`` and ``loss`` are as in :func:`vlmkit.scaling.family_law.fit_family`. Raises UserError where nothing can be
    answered: no family identifies the law, an LLM or family is unknown, the budget is below the cheapest candidate.
    """
    question = question or Question()
    llms = question.llms
    if measurements is None:
        measurements, llms = load_published(), llms or PUBLISHED_CANDIDATES
    sized = name_llms(measurements, llms) if llms else measurements.llms
    unanswered = dict(measurements.missing)
    laws: list[FamilyLaw] = []
    for family in measurements.families:
        try:
            laws.append(fit_family(family, measurements.of(family), law, loss))
        except UserError as error:
            unanswered[family] = str(error)
    predictors: list[Predictor] = [*laws, *_mixes(question.mix, laws)]
    answers: list[Answer] = []
    for predictor in _asked_for(question, predictors):
        try:
            answers.append(_answer(measurements, question, predictor, sized))
        except UserError as error:
            unanswered[predictor.name] = str(error)
    if not answers:
        raise UserError(" ".join(dict.fromkeys(unanswered.values())))
    return Frontier(question, measurements.basis, tuple(answers), unanswered)


def _mixes(weights: Mapping[str, float], laws: Sequence[FamilyLaw]) -> list[Mix]:
    """One mix for each compressor with laws for all families of it."""
    if not weights or not laws:
        return []
    total = sum(weights.values())
    compressors = dict.fromkeys(law.example.compressor_label for law in laws)
    mixes = []
    for label in compressors:
        own = {law.name: law for law in laws if law.example.compressor_label == label}
        parts = [(own.get(name) or own.get(f"{name} ({label})"), weight / total) for name, weight in weights.items()]
        found = tuple((law, weight) for law, weight in parts if law is not None)
        if len(found) == len(parts):
            mixes.append(Mix(MIX if len(compressors) == 1 else f"{MIX} ({label})", found))
    if not mixes:
        raise UserError(
            f"There are no laws for a mix of {', '.join(weights)}: the families with a law are "
            f"{', '.join(law.name for law in laws)}."
        )
    return mixes


def _asked_for(question: Question, predictors: Sequence[Predictor]) -> Sequence[Predictor]:
    """All predictors, or those with an error to reach. Raises UserError for a name that is not among them."""
    targets = question.target_error
    if not isinstance(targets, Mapping):
        return predictors
    names = [predictor.name for predictor in predictors]
    if unknown := [name for name in targets if name not in names]:
        raise UserError(f"There is no law for {', '.join(unknown)} to reach an error; there are {', '.join(names)}.")
    return [predictor for predictor in predictors if predictor.name in targets]


def _answer(measurements: Measurements, question: Question, law: Predictor, llms: Sequence[SizedLLM]) -> Answer:
    pricing = question.pricing.behind(law.example)
    counts = sorted(set(question.tokens or law.counts))
    notes: list[str] = []
    if question.compare:
        pairs = [(name_llms(measurements, [name]), count) for name, count in question.compare]
        candidates = [pricing.price(llm, count) for found, count in pairs for llm in found]
    elif question.continuous:
        candidates = offer_every_size((counts[0], counts[-1]), pricing)
    else:
        candidates, notes = offer(llms, counts, pricing, asked_for=bool(question.llms or question.tokens))
    return answer(
        law,
        candidates,
        pricing,
        target=question.target(law.name),
        keep_unaffordable=bool(question.compare),
        notes=[*notes, *measurements.notes.get(law.name, ())],
    )


def _round_up(value: float) -> float:
    """``value`` with two significant digits, never below it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit
