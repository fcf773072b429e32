"""SIGINT and SIGTERM as a wish to stop, granted at the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, notes the first SIGINT or SIGTERM instead of dying of it.

    In a process of its own the next signal has its usual effect, so a second Ctrl-C stops at once. Under torchrun it
    has none: the launcher passes every signal on, and a terminal's Ctrl-C would arrive twice.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        # torchrun and job schedulers signal the loader's workers as well. Their death is expected from here on, but
        # torch's handler would raise it as an error in the middle of the step that is to be finished.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if "RANK" not in os.environ:
            for other in SIGNALS:
                signal.signal(other, self._previous[other])
