"""Progress of long jobs. Apart from output.py because light commands should not wait for rich's progress machinery."""

from __future__ import annotations

from collections.abc import Mapping

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
    """Progress of a long job: a live bar on a terminal, a line now and then in a log file."""

    def __init__(self, lines_every: float = 0.1) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            _Figures(),
            console=err,
        )
        self._lines_every = lines_every
        self._total = 0
        self._next_line = 0.0

    def start(self, total: int, completed: int, description: str) -> None:
        """Begin a job of ``total`` units of which ``completed`` are done already."""
        self._total, self._description = total, description
        self._next_line = 0.0
        if err.is_terminal:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._task = self._progress.add_task(description, total=total, completed=completed, figures="")
            self._progress.start()

    def update(self, completed: int, metrics: Mapping[str, float] | None = None) -> None:
        """Show that ``completed`` units are done, with the latest metrics."""
        shown = {label: (metrics or {}).get(name) for name, label in _FIGURES.items()}
        figures = "  ".join(f"{label} {short(value)}" for label, value in shown.items() if value is not None)
        if err.is_terminal:
            self._progress.update(self._task, completed=completed)
            if figures:
                self._progress.update(self._task, figures=figures)
        elif completed >= self._total or (figures and completed / max(1, self._total) >= self._next_line):
            self._next_line = completed / max(1, self._total) + self._lines_every
            print_note(f"{self._description} {completed}/{self._total}  {figures}")

    def finish(self) -> None:
        """End the job."""
        if err.is_terminal:
            self._progress.stop()
