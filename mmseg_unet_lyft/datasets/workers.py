"""Work spread over processes: chunks in, results in order out, a dead worker explained."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

import cv2

from ..errors import InputError

Task = TypeVar('Task')
Result = TypeVar('Result')
# Chunks handed to each worker ahead of the results: enough to keep it busy, few enough to hold in memory.
_AHEAD = 2


def cores() -> int:
    """Cores this process may use."""
    # Inside a container or a job the affinity counts, but not every system knows it.
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def start_worker() -> None:
    """One thread a worker, and Ctrl-C is the parent's to handle."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def map_in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results of a function over tasks, in their order; with one worker in this process.

    However many tasks there are, only a few results wait in memory.

    Raises:
        InputError: If a worker process dies.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    tasks = iter(tasks)
    # Forking a process that runs threads (torch does) can hang the child: start clean ones.
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn'), initializer=start_worker) as pool:
        waiting = deque(pool.submit(function, task) for task in islice(tasks, _AHEAD * workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, task) for task in islice(tasks, 1))
                yield result
        except BrokenProcessPool:
            raise InputError(
                'a worker process was killed, most likely because memory ran out; use fewer with --workers 1'
            ) from None
        finally:
            for future in waiting:
                future.cancel()
