"""The recipes that become many runs: ``vlmkit sweep`` (VLMs) and ``vlmkit study`` (arms of pretraining)."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from vlmkit.config.pretrain import PretrainRecipe
from vlmkit.config.sections import Positive, Section
from vlmkit.config.vlm import Query, VLMRecipe


class SweepRecipe(Section):
    """``vlmkit sweep``: one VLM recipe, and lists whose product becomes its runs."""

    command: Literal["sweep"] = "sweep"
    base: VLMRecipe = VLMRecipe()
    llms: list[str] = Field(min_length=1, description="Language models, by name.")
    tokens: list[Positive | list[Positive]] = Field(
        min_length=1, description="Visual token counts; a list among them is one elastic run."
    )
    compressors: list[str] = Field(["avgpool"], min_length=1, description="Compressors, by name.")
    queries: list[Query] = Field(
        [],
        description="What a compressor that sees the question is told of it, each in turn; empty: base.compressor's.",
    )
    seeds: list[int] = Field([0], min_length=1, description="Seeds.")
    lr: dict[str, float] = Field(default_factory=dict, description="Peak rate by language model, where it must differ.")
    eval_samples: Positive | None = Field(None, description="Samples each run is evaluated on, at most; null: all.")
    text_tokens: int = Field(50, ge=0, description="Text tokens beside an image, in the costs of the fitted frontier.")
    slurm: dict[str, str | int] = Field(
        default_factory=dict,
        description="Options of sbatch for the job of each run, by long name: {time: '04:00:00', gpus: 1, ...}.",
    )

    @field_validator("slurm")
    @classmethod
    def _options_of_a_run(cls, options: dict[str, str | int]) -> dict[str, str | int]:
        for name, value in options.items():
            if not re.fullmatch(r"[a-z][a-z-]*", name) or "\n" in str(value):
                raise ValueError(f"{name!r} is no long option of sbatch; write them like {{partition: gpu, gpus: 1}}")
            if name in _WRITTEN_BY_SWEEP:
                raise ValueError(f"{name} is written by the sweep itself; leave it out")
        # YAML takes 12:00:00 for a number in base 60, which sbatch would take for minutes.
        if not isinstance(options.get("time", ""), str):
            raise ValueError("time must be quoted, like '12:00:00'")
        return options


_WRITTEN_BY_SWEEP = ("array", "job-name", "output", "signal")

_ARM = re.compile(r"\w[\w .,+=()%-]*")


def at_equal_seconds(arm: str) -> str:
    """What a study calls the arm that runs ``arm`` once more, at equal seconds."""
    return f"{arm} at equal seconds"


def lit_on(arm: str) -> str:
    """What a study calls the arm that trains text towers on the towers of ``arm``."""
    return f"LiT on {arm}"


def arm_folder(arm: str) -> str:
    """What the names of the directories of an arm's runs begin with."""
    return arm.replace(" ", "-")


class StudyRecipe(Section):
    """``vlmkit study``: arms that differ from one pretraining recipe in a few keys, over seeds, evaluated alike."""

    command: Literal["study"] = "study"
    base: PretrainRecipe = PretrainRecipe()
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="Name of an arm -> {dotted key: value}, what it changes in the base recipe."
    )
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="Seeds of every arm.")
    equal_seconds: dict[str, str] = Field(
        default_factory=dict,
        description="Arm -> reference arm: the arm runs once more, with the samples that the reference's time buys it.",
    )
    lit: list[str] = Field([], description="Arms whose towers, frozen, get a text tower afterwards: an arm more each.")
    tasks: list[str] = Field(
        ["linear_probe"], min_length=1, description="Evaluations of every tower, each where it fits the arm."
    )
    eval_samples: Positive | None = Field(None, description="Samples of an evaluation's sets, at most; null: all.")
    train_data: str | None = Field(None, description="Labelled images a probe is fitted on; null: the embedded world.")
    test_data: str | None = Field(None, description="Labelled images a probe is scored on; null: the embedded world.")

    @model_validator(mode="after")
    def _known_arms(self) -> StudyRecipe:
        named = {"equal_seconds": {*self.equal_seconds, *self.equal_seconds.values()}, "lit": {*self.lit}}
        for key, arms in named.items():
            if unknown := arms - self.arms.keys():
                raise ValueError(f"{key} names {', '.join(sorted(unknown))}, which is no arm")
        return self

    @model_validator(mode="after")
    def _arms_with_directories_of_their_own(self) -> StudyRecipe:
        taken: dict[str, str] = {}
        for arm in self.all_arms:
            if not _ARM.fullmatch(arm):
                raise ValueError(
                    f"the arm {arm!r} cannot name a directory; use letters, digits, spaces and any of _.,+=()%-"
                )
            # Case does not tell directories apart everywhere.
            if (other := taken.setdefault(arm_folder(arm).casefold(), arm)) != arm:
                raise ValueError(f"the arms {other!r} and {arm!r} would share their directories; rename one")
        return self

    @property
    def all_arms(self) -> list[str]:
        """The arms, those that run again at equal seconds, and those that train text towers."""
        return [*self.arms, *map(at_equal_seconds, self.equal_seconds), *map(lit_on, self.lit)]
