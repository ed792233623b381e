"""How a command works on frames that keep coming: progress, data on standard output."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

from .progress import clock


class FrameMeter:
    """Frames done, the rate just now and the time left, on stderr: a line in place, or one every 10 seconds.

    Args:
        total: How many frames there are, None if nobody knows.
    """

    def __init__(self, total: int | None) -> None:
        self.done, self._total = 0, total
        self._in_place = sys.stderr.isatty()
        self._every = 0.5 if self._in_place else 10.0
        self._shown, self._shown_at = 0, time.monotonic()

    def __call__(self) -> None:
        """Count a frame."""
        self.done += 1
        now = time.monotonic()
        if now - self._shown_at >= self._every:
            fps = (self.done - self._shown) / (now - self._shown_at)
            self._shown, self._shown_at = self.done, now
            sys.stderr.write(f'\r{self._line(fps)}\x1b[K' if self._in_place else f'{self._line(fps)}\n')
            sys.stderr.flush()

    def _line(self, fps: float) -> str:
        if self._total is None or self._total < self.done:
            return f'frame {self.done}, {fps:.1f} FPS'
        left = clock((self._total - self.done) / fps)
        return f'frame {self.done} of {self._total}, {fps:.1f} FPS, {left} left'

    def close(self) -> None:
        """End the line."""
        if self._in_place and self._shown:
            sys.stderr.write('\n')


@contextmanager
def only_data_on_stdout() -> Iterator[TextIO]:
    """Standard output for data; what anything else, libraries too, writes there goes to stderr meanwhile."""
    sys.stdout.flush()
    data = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    data.buffer.raw.name = 'standard output'
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield data
    finally:
        os.dup2(data.fileno(), 1)
        # A reader that went away was told of by whoever wrote.
        with suppress(OSError):
            data.close()
