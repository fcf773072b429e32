"""Progress in a log file: lines by the clock, with the time left, for jobs with metrics and without."""

from __future__ import annotations

import pytest

from vlmkit.cli import progress


def test_lines_come_by_the_clock_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lines = [100.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "print_note", lines.append)
    shown = progress.RichProgress(seconds=20)
    shown.start(total=50, completed=10, description="9 runs")
    for completed in range(11, 51):
        now[0] += 5
        shown.update(completed, {"train/loss": 1.25} if completed < 20 else {})
    shown.update(50)  # a grid is asked again and again while its last runs are evaluated
    assert lines[:2] == ["9 runs 14/50  ETA 0:03:00  loss 1.25", "9 runs 18/50  ETA 0:02:40  loss 1.25"]
    assert lines[2] == "9 runs 22/50  ETA 0:02:20  " and len(lines) == 10 and lines[-1] == "9 runs 50/50  "
