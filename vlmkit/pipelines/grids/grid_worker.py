"""What a process of a grid's pool does beside its runs: it stops when it is asked to, and ends when its parent does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from vlmkit.errors import Interrupted

_stop_asked = threading.Event()


def begin(threads: int, lifeline: connection.Connection) -> None:
    """Set up a process of the pool: ``threads`` to compute with, and an eye on the parent.

    The parent holds the other end of ``lifeline`` and closes it to ask for a stop: the run is then interrupted as by
    SIGTERM, so it saves its state. A parent that dies, of whatever, takes its workers with it at once.
    """
    torch.set_num_threads(threads)
    # A terminal's Ctrl-C is for the parent, which asks for the stop once; a second signal would cut the saving short.
    os.setsid()
    threading.Thread(target=_watch_parent, args=(lifeline,), daemon=True).start()


def run(run_cell: Callable[..., None], out: Path, arguments: tuple[Any, ...]) -> None:
    """One run. Raises Interrupted where the parent has asked for a stop, before or during it."""
    if _stop_asked.is_set():
        _interrupt(signal.SIGTERM)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        run_cell(out, *arguments)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _watch_parent(lifeline: connection.Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by the pool"
    if parent.sentinel not in connection.wait([parent.sentinel, lifeline]):
        _stop_asked.set()
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # a run is going on
            os.kill(os.getpid(), signal.SIGTERM)
        connection.wait([parent.sentinel])
    os._exit(1)


def _interrupt(number: int, frame: FrameType | None = None) -> NoReturn:
    raise Interrupted("stopped", number)
