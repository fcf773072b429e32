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
    has none: the launcher passes every signal on, and a terminal's Ctrl-C would arrive twice. Loader workers started
    inside inherit the handlers, so a Ctrl-C does not kill them before the step is finished.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        if "RANK" not in os.environ:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
