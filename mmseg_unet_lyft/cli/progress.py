"""How far a command is, on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

# A line behind each tenth, but not before the first of these and not later than the second.
_LINE_SECONDS = (1.0, 30.0)


def progress(items: Iterable, total: int | None, what: str) -> Iterator:
    """The items, with progress and ETA on stderr while they are consumed: a bar on a terminal, else lines."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if console.is_interactive:
        yield from track(items, total=total, description=what, console=console)
    else:
        yield from told_in_lines(items, total, what)


def told_in_lines(items: Iterable, total: int | None, what: str) -> Iterator:
    """The items, with how many are done, the rate and the time left on stderr, for a file or a pipe.

    Args:
        items: Passed on as they are.
        total: How many there are, None if nobody knows.
        what: Is done with them.
    """
    start = shown_at = time.monotonic()
    done = shown = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        is_tenth = total is not None and 10 * (done - shown) >= total
        if now - shown_at >= _LINE_SECONDS[not is_tenth] and done != total:
            shown, shown_at, rate = done, now, done / (now - start)
            of = f' of {total}, {100 * done // total} %' if total else ''
            left = f', {clock((total - done) / rate)} left' if total and done <= total else ''
            sys.stderr.write(f'{what}: {done}{of}, {rate:.3g} a second{left}\n')
            sys.stderr.flush()
    seconds = time.monotonic() - start
    sys.stderr.write(f'{what}: {done} in {clock(seconds)}, {done / max(seconds, 1e-9):.3g} a second\n')
    sys.stderr.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: ``0:07``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes}:{rest:02d}'
