"""Signals that end work so that it can be finished first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop(threading.Event):
    """Set by a signal.

    Attributes:
        exit_code: What the shell expects of a process that the signal ended; 0 without one.
    """

    exit_code = 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """An event that Ctrl-C or SIGTERM sets, so that work can be finished; the second one ends it at once."""
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.exit_code = 128 + number
        stop.set()

    # Only the main thread may handle signals.
    watched = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
