"""Tables of measured times: what ``vlmkit bench`` writes and a cost in milliseconds reads."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.scaling.workload import Workload

FORMAT = "vlmkit latency table"
SHIPPED = Path(__file__).parent / "latency_tables"
"""Tables that come with the package, by the name of their machine."""
PARTS = ("tower", "compressor", "query pass", "prefill", "decode")
"""Parts of an answer. ``decode`` is the time of one generated token after the first."""
_OF_THE_PROMPT = ("prefill", "decode")
"""Parts whose time depends on the whole prompt, not on its visual tokens alone."""


@dataclass(frozen=True)
class Timing:
    """The times of one LLM with one number of visual tokens, each part's as a list of runs in milliseconds."""

    llm: str
    """Registry name, or the name or path it was asked for by."""
    visual_tokens: int
    tower: str
    image_size: int
    """Image side in pixels."""
    compressor: str
    prefill_flops: float
    """Of the LLM's layers and the logits of the last position, for one answer."""
    runs: Mapping[str, Sequence[float]]
    """Milliseconds of every run of a part; parts that the model does not have are left out."""

    def median(self, part: str) -> float:
        """The median of a part's runs in milliseconds; 0 for one that the model does not have."""
        return statistics.median(self.runs[part]) if part in self.runs else 0.0

    def answer(self, new_tokens: int) -> float:
        """Milliseconds of a whole answer: every part once, and ``decode`` for each new token after the first."""
        return sum(self.median(part) for part in PARTS) + (new_tokens - 2) * self.median("decode")


@dataclass(frozen=True)
class LatencyTable:
    """Times measured on one machine with one workload. Raises UserError if it is empty or a row is there twice."""

    hardware: str
    date: str
    versions: Mapping[str, str | None]
    dtype: str
    device: str
    threads: int
    """CPU threads of torch."""
    workload: Workload
    rows: tuple[Timing, ...]
    cuda_graphs: bool = False
    """Whether parts were replayed as CUDA graphs, so that launching their kernels is not in the times."""
    origin: str = "the latency table"
    """What messages call it: the file it was read from."""

    def __post_init__(self) -> None:
        keys = [(row.llm, row.visual_tokens) for row in self.rows]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice:
            raise UserError(f"{self.origin} has {twice[0]} with {twice[1]} visual tokens twice; keep one of the rows.")
        if not keys:
            raise UserError(f"{self.origin} has no rows; measure some with `vlmkit bench`.")

    @property
    def conditions(self) -> str:
        """What it was measured on, and how: ``NVIDIA H200 in bf16, CUDA graphs (2026-11-27)``."""
        return f"{self.hardware} in {self.dtype}{', CUDA graphs' if self.cuda_graphs else ''} ({self.date})"

    @property
    def llms(self) -> list[str]:
        """The measured language models, in the table's order."""
        return list(dict.fromkeys(row.llm for row in self.rows))

    def of(self, llm: str) -> list[Timing]:
        """The rows of a language model (any name or alias of the registry's), by visual tokens.

        Raises UserError, naming the measured ones, if there are none.
        """
        name = registry.llm(llm).name if registry.is_llm(llm) else llm
        rows = sorted((row for row in self.rows if row.llm == name), key=lambda row: row.visual_tokens)
        if not rows:
            raise UserError(
                f"{self.origin} has no times of {name}, only of {', '.join(self.llms)}; measure it on the same machine "
                f"with `vlmkit bench {name}`, or leave it out."
            )
        return rows

    def milliseconds(self, llm: str, visual_tokens: float, text_tokens: int) -> dict[str, float]:
        """Median milliseconds by part, linear between the two measured prompts around this one.

        Beside other text than was measured, the LLM's parts are those of the measured prompt of as many tokens in all.
        Raises UserError for a language model, a number of visual tokens or a prompt outside
        what was measured.
        """
        rows = self.of(llm)
        counts = [row.visual_tokens for row in rows]
        shift = text_tokens - self.workload.text_tokens
        if not counts[0] <= visual_tokens <= counts[-1] or not counts[0] <= visual_tokens + shift <= counts[-1]:
            text, name = self.workload.text_tokens, rows[0].llm
            raise UserError(
                f"{self.origin} has {name} with {counts[0]} to {counts[-1]} visual tokens beside {text} of text, and "
                f"{visual_tokens:g} beside {text_tokens} lie outside; measure them on the same machine with "
                f"`vlmkit bench {name} --tokens {visual_tokens:g} --text-tokens {text_tokens}`."
            )
        at = {part: visual_tokens + shift * (part in _OF_THE_PROMPT) for part in PARTS}
        return {part: float(np.interp(at[part], counts, [row.median(part) for row in rows])) for part in PARTS}

    @property
    def fixes_text(self) -> bool:
        """Whether times hold for the measured text alone, because it is cached or the compressor reads it.

        A prefill depends on how many tokens there are, not on which, so other text is otherwise a prompt of another
        length.
        """
        return self.workload.cached_text or any("query pass" in row.runs for row in self.rows)

    def check_workload(self, workload: Workload) -> None:
        """Raise UserError unless the table tells the times of this workload.

        The time of one new token is known, and with it that of any number.
        """
        wanted = replace(workload, new_tokens=self.workload.new_tokens)
        if not self.fixes_text:
            wanted = replace(wanted, text_tokens=self.workload.text_tokens)
        if wanted != self.workload:
            raise UserError(
                f"{self.origin} was measured with {self.workload}, not with {workload}; ask for what was measured, or "
                "measure again with `vlmkit bench`."
            )

    def to_json(self) -> dict[str, Any]:
        """The table as one JSON object, every run in it."""
        about = {key: value for key, value in asdict(self).items() if key != "origin"}
        return {"format": FORMAT, **about}

    def dumps(self) -> str:
        """The text of the table's file."""
        return json.dumps(self.to_json(), indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table: a file, or one that is shipped, by name. Raises UserError for a file that is missing, no table,
        or damaged."""
        shipped = {table.stem: table for table in sorted(SHIPPED.glob("*.json"))}
        try:
            content = json.loads(shipped.get(str(path), Path(path)).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"The latency table {path} cannot be read ({error.strerror}); `vlmkit bench` writes one, "
                f"and the package comes with {', '.join(shipped)}."
            ) from error
        except ValueError as error:
            raise UserError(f"The latency table {path} is not JSON ({error}); measure it again.") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise UserError(f"{path} is not a latency table; `vlmkit bench` writes one.")
        try:
            rows = tuple(Timing(**row) for row in content.pop("rows"))
            workload = Workload(**content.pop("workload"))
            if not all(time > 0 for row in rows for runs in row.runs.values() for time in runs):
                raise ValueError("a time is not positive")
            if not all(row.runs.get("prefill") and row.runs.get("decode") for row in rows):
                raise ValueError("a row lacks its prefill or decode")
            return cls(rows=rows, workload=workload, origin=str(path), **content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"The latency table {path} is damaged ({error}); measure it again.") from error
