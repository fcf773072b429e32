"""How ``vlmkit frontier`` prints its answers."""

from __future__ import annotations

from typing import Any

from vlmkit.cli.options import Format
from vlmkit.cli.output import print_csv, print_json, print_markdown, print_note, print_table, print_text
from vlmkit.scaling.answer import Answer, Choice
from vlmkit.scaling.bootstrap import Interval
from vlmkit.scaling.budgets import format_flops, format_params
from vlmkit.scaling.family_law import DRAWS, LEVEL, FamilyLaw, Optimum
from vlmkit.scaling.frontier import Frontier

_BASES = {
    "nominal": "Law and 2N(Q + V) use the size in the LLM's name.",
    "non-embedding": "Law and 2N(Q + V) use non-embedding parameters; those listed are all weights.",
}
_AXES = {"size": "sizes", "tokens": "token counts"}


def print_frontier(frontier: Frontier, top: int, form: Format) -> None:
    """All answers in the given form on stdout; what could not be answered on stderr."""
    if form is Format.json:
        print_json(frontier.to_json(top))
    elif form is Format.csv:
        flat = [{"answer": answer.name, **_flat(choice)} for answer in frontier.answers for choice in answer.choices]
        print_csv(list(dict.fromkeys(column for row in flat for column in row)), flat)
    else:
        show = print_markdown if form is Format.markdown else print_table
        if frontier.asks_for_range:
            show(*_range(frontier))
        else:
            for answer in frontier.answers:
                title, columns, rows, notes = _table(answer, frontier, top)
                if show is print_table and answer is not frontier.answers[0]:
                    print_text("")
                show(title, columns, rows, [*notes, *(_common(frontier) if answer is frontier.answers[-1] else ())])
    for name, reason in frontier.unanswered.items():
        print_note(f"No answer for {name}: {reason}")


def _flat(choice: Choice) -> dict[str, Any]:
    row = choice.to_json()
    low, high = row.pop("interval") or (None, None)
    costs = {f"cost_{name}": value for name, value in row.pop("costs").items()}
    return {**row, "error_low": low, "error_high": high, **costs, "extrapolated": " ".join(choice.extrapolated)}


def _table(answer: Answer, frontier: Frontier, top: int) -> tuple[str, list[str], list[list[Any]], list[str]]:
    """Title, columns, rows and notes of one answer."""
    models = answer.pricing.models
    by_error = answer.target is None
    columns = ["LLM", "parameters", "tokens", "error", "95%", "loses" if by_error else "costs"]
    columns += ["best in" if by_error else "reaches", "cost", *(model.name for model in models[1:]), "budget"]
    rows = [
        [
            choice.llm.name + "*" * ("size" in choice.extrapolated),
            format_params(choice.llm.num_params) if frontier.basis == "non-embedding" else None,
            f"{choice.visual_tokens}{'*' * ('tokens' in choice.extrapolated)}",
            f"{choice.error:.4f}",
            choice.interval and "{:.3f}-{:.3f}".format(*choice.interval),
            "" if choice is answer.best else f"+{choice.behind:.1%}",
            None if choice.probability is None else f"{choice.probability:.0%}",
            *(model.format(choice.costs[model.name]) for model in models),
            "" if choice.affordable else "over",
        ]
        for choice in answer.choices[:top]
    ]
    return _title(answer, frontier), columns, rows, [*_law(answer), *answer.notes]


def _title(answer: Answer, frontier: Frontier) -> str:
    best = answer.best
    choice = f"{best.llm.name} with {_counted(best.visual_tokens)}"
    within = " and ".join(str(budget) for budget in answer.pricing.budgets.values())
    if answer.target is not None:
        limit = f" within {within}" if within else ""
        return f"{answer.name}, cheapest for an error of {answer.target:g}{limit}: {choice}"
    if frontier.question.compare:
        return f"{answer.name}, choices compared: {choice}"
    return f"{answer.name} within {within}: {choice}"


def _counted(visual_tokens: float) -> str:
    return f"{visual_tokens:.3g} visual token{'' if visual_tokens == 1 else 's'}"


def _law(answer: Answer) -> list[str]:
    """The best number of tokens, the law and what is doubtful about it."""
    family, notes = answer.law, []
    if answer.optimum:
        notes.append(_optimum(answer.optimum, answer.pricing.workload.prefilled_text))
    if isinstance(family, FamilyLaw):
        notes += [_formula(family), *family.doubts]
    return notes


def _optimum(optimum: Optimum, text_tokens: int) -> str:
    where = "at any budget" if optimum.flops is None else f"at {format_flops(optimum.flops)}"
    interval = f" ({_between(optimum.interval, '.3g')})" if optimum.interval else ""
    return (
        f"If LLMs came in every size, {_counted(optimum.visual_tokens)}{interval} would be best {where} of "
        f"2N(Q + V) with Q = {text_tokens}."
    )


def _formula(family: FamilyLaw) -> str:
    fit, law = family.fit, family.fit.law
    weighted = ", points weighted by their standard errors" if family.weighted else ""
    interval = f" ({_between(family.bootstrap.ratio(LEVEL), '.2f')}" if family.bootstrap else ""
    if interval and family.ratio_by_size:
        interval += "; redrawing LLMs: {:.2f} to {:.2f}".format(*family.ratio_by_size)
    misses = [f"{fit.max_relative_error:.1%} at its {fit.num_points} points"]
    misses += [f"{errors.largest:.1%} at {_AXES[axis]} left out" for axis, errors in family.left_out.items()]
    return (
        f"Law: error = {law.formula()} (N in billions{weighted}); alpha/beta {float(law.ratio(*fit.middle)):.2f}"
        f"{interval and interval + ')'}. It misses by up to {', '.join(misses)}."
    )


def _between(interval: Interval, form: str) -> str:
    return f"{LEVEL:.0%}: {interval[0]:{form}} to {interval[1]:{form}}"


def _common(frontier: Frontier) -> list[str]:
    """What holds for all answers."""
    models = [model for answer in frontier.answers for model in answer.pricing.models]
    costs = list(dict.fromkeys(f"Cost {model.name}: {model.describe()}." for model in models))
    if all(choice.probability is None for answer in frontier.answers for choice in answer.choices):
        return [*costs, _BASES[frontier.basis]]
    draws = f"95%: of {DRAWS} bootstrap draws, if the law's form is right"
    if frontier.question.target_error is not None:
        draws += "; reaches: in so many of them a choice reaches the error"
    elif not frontier.asks_for_range:
        draws += "; best in: in so many of them no choice has a smaller error"
    return [*costs, f"{draws}.", _BASES[frontier.basis]]


def _range(frontier: Frontier) -> tuple[str, list[str], list[list[Any]], list[str]]:
    """The best choices as the budget grows."""
    rows: list[list[Any]] = []
    for budget in frontier.budgets():
        choices = [answer.best_within(budget) for answer in frontier.answers]
        cells = [f"{c.llm.name} x {c.visual_tokens} ({c.error:.3f})" if c else "" for c in choices]
        rows.append([frontier.pricing.primary.format(budget), *cells])
    answers = frontier.answers
    shared = [note for note in answers[0].notes if all(note in answer.notes for answer in answers)]
    notes = ["A choice is LLM x visual tokens (predicted error)."]
    for answer in answers:
        own = [note for note in answer.notes if note not in shared]
        notes += [f"{answer.name}: {line}" for line in [*_law(answer), *own]]
    columns = ["budget", *(answer.name for answer in answers)]
    return "What to deploy as the budget grows", columns, rows, [*notes, *shared, *_common(frontier)]
