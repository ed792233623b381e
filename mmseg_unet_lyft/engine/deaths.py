"""A loader worker or a rank that died under a run: found between two steps, and told in a sentence."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ..errors import InputError
from .memory import free_memory, is_shortage

_SHARED_MEMORY = Path('/dev/shm')  # Where torch's workers put batches.
_WORKER = re.compile(r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)')
# What reading a batch of a worker that died raises, before its signal is heard.
LOST = (ConnectionError, EOFError, FileNotFoundError)
_SIGNAL_SECONDS = 5.0
_PEER = re.compile(
    r'closed by peer|reset by peer|pair closure|Broken pipe|Socket Timeout|Timed out waiting|gloo|NCCL',
    re.IGNORECASE,
)


class WorkerDeaths:
    """Puts off the error for a loader worker that died until the step that is being made is whole.

    torch raises it from a signal handler, anywhere, also between the change of the weights and its count.
    """

    def __init__(self) -> None:
        self._raise: Any = None
        self._is_noted = False

    def put_off(self) -> None:
        """From now on, only note that a worker died; where torch's handler is not there yet, do nothing."""
        number = getattr(signal, 'SIGCHLD', None)
        if self._raise or number is None or threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(number)
        if callable(handler):
            self._raise = handler
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_noted = True

    def check(self) -> None:
        """Raise torch's RuntimeError if a worker died since."""
        if self._is_noted:
            self._is_noted = False
            self._raise(signal.SIGCHLD, None)

    def wait(self) -> None:
        """As `check`, where something else already shows that a worker is gone: the signal comes soon."""
        end = time.monotonic() + _SIGNAL_SECONDS
        while not self._is_noted and time.monotonic() < end:
            time.sleep(0.05)
        self.check()

    def give_back(self) -> None:
        """Let torch's handler raise again."""
        if self._raise:
            signal.signal(signal.SIGCHLD, self._raise)
            self._raise = None


@contextmanager
def explained() -> Iterator[None]:
    """Within it, a dead worker, a dead rank and memory that ran out are InputErrors; other errors pass."""
    try:
        yield
    except RuntimeError as error:
        worker = _WORKER.search(str(error))
        if worker:
            raise InputError(_describe_worker(f'{worker[1]} {worker[2].strip().rstrip(".")}')) from error
        if torch.distributed.is_initialized() and _PEER.search(str(error)):
            raise InputError(
                'another rank is gone; what it said stands above. All ranks end: go on with --resume'
            ) from error
        if is_shortage(error):
            raise InputError(
                f'out of memory ({str(error).splitlines()[0]}){_left()}; in validation, a smaller '
                'val_batch_size or window_size takes less'
            ) from error
        raise
    except LOST as error:
        # A batch in shared memory goes with the worker that made it.
        if not any(
            'multiprocessing' in frame.filename for frame in traceback.extract_tb(error.__traceback__)
        ):
            raise
        raise InputError(_describe_worker(f'is gone ({type(error).__name__})')) from error


def _describe_worker(what: str) -> str:
    """What became of a worker, what is short, and what to do."""
    shared = ''
    if _SHARED_MEMORY.is_dir():
        shared = f'; {_SHARED_MEMORY} has {shutil.disk_usage(_SHARED_MEMORY).free / 1e6:.0f} MB left'
    return (
        f'loader worker {what}: most often memory ran out{_left()}{shared}. Set a smaller '
        'num_workers or batch_size, or num_workers=0, and go on with --resume'
    )


def _left() -> str:
    """How much memory is free, where the system says it."""
    free = free_memory(torch.device('cpu'))
    return '' if free is None else f', {free / 1e9:.2f} GB are free now'
