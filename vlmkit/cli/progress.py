"""Progress of long jobs. Apart from output.py because light commands should not wait for rich's progress machinery."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vlmkit.cli.output import err, print_note, short

_FIGURES = {"train/loss": "loss", "train/samples_per_second": "samples/s", "train/memory_gb": "GB"}
"""The metrics shown while training, and what they are called there."""


class _Figures(ProgressColumn):
    """The metrics of the latest step, behind the bar."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("figures", "")))


class RichProgress:
    """Progress of a long job: a live bar on a terminal; in a log file a line every ``seconds``, and one at the end."""

    def __init__(self, seconds: float = 20.0) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            _Figures(),
            console=err,
        )
        self._seconds = seconds

    def start(self, total: int, completed: int, description: str) -> None:
        """Begin a job of ``total`` units of which ``completed`` are done already."""
        self._total, self._description = total, description
        self._began, self._before = time.monotonic(), completed
        self._last_line, self._last_shown = self._began, completed
        if err.is_terminal:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._task = self._progress.add_task(description, total=total, completed=completed, figures="")
            self._progress.start()

    def update(self, completed: int, metrics: Mapping[str, float] | None = None) -> None:
        """Show that ``completed`` units are done, with the latest metrics."""
        shown = {label: (metrics or {}).get(name) for name, label in _FIGURES.items()}
        figures = "  ".join(f"{label} {short(value)}" for label, value in shown.items() if value is not None)
        now = time.monotonic()
        if err.is_terminal:
            self._progress.update(self._task, completed=completed)
            if figures:
                self._progress.update(self._task, figures=figures)
        elif now - self._last_line >= self._seconds or completed >= self._total > self._last_shown:
            self._last_line, self._last_shown = now, completed
            print_note(f"{self._description} {completed}/{self._total}  {self._remaining(completed, now)}{figures}")

    def _remaining(self, completed: int, now: float) -> str:
        """The time left at the pace so far, where there is any."""
        if not self._before < completed < self._total:
            return ""
        seconds = (now - self._began) / (completed - self._before) * (self._total - completed)
        return f"ETA {timedelta(seconds=round(seconds))}  "

    def finish(self) -> None:
        """End the job."""
        if err.is_terminal:
            self._progress.stop()
