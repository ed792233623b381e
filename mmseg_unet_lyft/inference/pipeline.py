"""Frames through work and into results: in turn, or reading, working and writing at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from queue import Empty, Queue
from typing import Any

import numpy as np

Work = Callable[[np.ndarray], Any]
Write = Callable[[Any], None]
# Of each worker: frames beyond the one it works on, so that it never waits for the reader.
_AHEAD = 2
_POLL_SECONDS = 0.1  # How soon a stop is seen while there is nothing to write.
_PATIENCE_SECONDS = 2.0  # For a source that gives no frame, say a camera that hangs.


def run_in_turn(frames: Iterable[np.ndarray], work: Work, write: Write, stop: threading.Event) -> int:
    """Read, work on and write one frame after another; returns how many were written.

    Args:
        frames: Read until they end or raise; closed then, if they can be.
        work: Makes what is written of a frame.
        write: Writes it.
        stop: Ends the run between two frames.
    """
    written = 0
    with closing(_Closable(frames)):
        for frame in frames:
            if stop.is_set():
                break
            write(work(frame))
            written += 1
    return written


def run_overlapped(
    frames: Iterable[np.ndarray], work: Work, write: Write, stop: threading.Event, workers: int
) -> int:
    """As `run_in_turn`, with a thread that reads, ``workers`` that work, and the calling one, which writes.

    What is written comes in the frames' order. No more than ``frames_in_flight(workers)`` frames are read
    ahead of the one that is being written. An error of any of them ends all and is raised here, once; an
    error of the frames themselves is raised when those before it are written.
    """
    line: Queue[Future | BaseException | None] = Queue()
    room, ending = threading.Semaphore(frames_in_flight(workers)), threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix='work')

    def read() -> None:
        end = None
        try:
            with closing(_Closable(frames)):
                for future in _submitted(iter(frames), lambda frame: pool.submit(work, frame), room, ending):
                    line.put(future)
        except BaseException as error:  # noqa: BLE001  (raised by the calling thread)
            end = error
        line.put(end)

    # A daemon: a source that gives nothing more must not keep the process from ending.
    reader = threading.Thread(target=read, name='read', daemon=True)
    reader.start()
    written = 0
    try:
        for future in _in_order(line, stop):
            write(future.result())
            del future
            room.release()
            written += 1
    finally:
        ending.set()
        room.release()
        pool.shutdown(wait=True, cancel_futures=True)
        reader.join(_PATIENCE_SECONDS)
    return written


def frames_in_flight(workers: int) -> int:
    """How many frames are held at most between being read and being written."""
    return workers * (1 + _AHEAD)


def _submitted(
    frames: Iterator[np.ndarray],
    submit: Callable[[np.ndarray], Future],
    room: threading.Semaphore,
    ending: threading.Event,
) -> Iterator[Future]:
    """The frames' futures; a frame is read once there is room for it."""
    while True:
        room.acquire()
        if ending.is_set():
            return
        frame = next(frames, None)
        if frame is None or ending.is_set():
            return
        yield submit(frame)
        del frame


def _in_order(line: Queue[Future | BaseException | None], stop: threading.Event) -> Iterator[Future]:
    """Finished futures as they stand in line, until its end or a stop; raises what the end says."""
    while not stop.is_set():
        try:
            entry = line.get(timeout=_POLL_SECONDS)
        except Empty:
            continue
        if entry is None:
            return
        if isinstance(entry, BaseException):
            raise entry
        while not wait([entry], timeout=_POLL_SECONDS).done:
            if stop.is_set():
                return
        yield entry


class _Closable:
    """Frames with a ``close``, whether or not they have one."""

    def __init__(self, frames: Iterable[np.ndarray]) -> None:
        self.close = getattr(frames, 'close', lambda: None)
