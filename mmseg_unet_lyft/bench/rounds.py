"""Contenders that take turns: what each took, and the medians and spread of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Show = Callable[[Iterable, int, str], Iterable]


@dataclass
class Seconds:
    """Of one turn: wall clock and the measuring process's own CPU time, each for one sample."""

    wall: float
    cpu: float


def timed(work: Callable[[], object], samples: int = 1) -> Seconds:
    """What work on so many samples takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds((time.perf_counter() - wall) / samples, (time.process_time() - cpu) / samples)


def alternate(
    rounds: int, works: dict[str, Callable[[], Seconds]], show: Show, what: str
) -> dict[str, list[Seconds]]:
    """Every work once a round, in turn, so that what else the machine does hits all alike."""
    found: dict[str, list[Seconds]] = {name: [] for name in works}
    for _ in show(range(rounds), rounds, what):
        for name, work in works.items():
            found[name].append(work())
    return found


def spread(values: Iterable[float], scale: float = 1.0) -> dict[str, float]:
    """Median, least and most."""
    values = [value * scale for value in values]
    return dict(median=statistics.median(values), least=min(values), most=max(values))


def with_spread(found: dict[str, float], digits: int = 1) -> str:
    """A `spread`: ``2.0 (1.0-4.0)``."""
    return f'{found["median"]:.{digits}f} ({found["least"]:.{digits}f}-{found["most"]:.{digits}f})'
