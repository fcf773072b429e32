"""Scoring rules, a module of pure functions each; found by the name of a benchmark. No torch."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import cast

from vlmkit.errors import UserError
from vlmkit.evals.scoring.case import Scoring, ScoringRule

_OWN_RULES = (
    "ai2d",
    "chartqa",
    "coco_captions",
    "docvqa",
    "gqa",
    "infovqa",
    "mathvista",
    "mmbench_en_dev",
    "mme",
    "mmmu",
    "ocrbench",
    "pope",
    "scienceqa_img",
    "seedbench",
    "textvqa",
    "vizwiz_vqa",
    "vqav2",
)
RULES = {name: name for name in _OWN_RULES} | {
    "caption": "coco_captions",
    "llava": "exact_match",
    "miniworld": "exact_match",
}
"""The module of every benchmark whose answers can be scored."""


def rule(benchmark: str, scoring: Scoring = "official") -> ScoringRule:
    """The rule that scores a benchmark's answers, which has the variant ``scoring``.

    Raises UserError for a benchmark that is unknown (naming the nearest) and for a variant that its rule does not have.
    """
    if benchmark not in RULES:
        near = difflib.get_close_matches(benchmark.lower(), RULES, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"choose one of {', '.join(sorted(RULES))}."
        raise UserError(f"There is no scoring rule for {benchmark!r}; {hint}")
    found = cast(ScoringRule, import_module(f"{__name__}.{RULES[benchmark]}"))
    if scoring not in found.VARIANTS:
        raise UserError(
            f"{benchmark} is not scored by the rule {scoring!r}, only by {' and '.join(found.VARIANTS)}; "
            "choose that, or leave --scoring out."
        )
    return found


__all__ = ["RULES", "rule"]
