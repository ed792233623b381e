"""Processes: this one's rank, what torch may load in it, and work spread over several workers."""

import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pickle import UnpicklingError
from typing import Any

from .errors import InputError

# How a user starts a launcher, and its variables: rank, number of ranks, the same on this machine.
_LAUNCHERS = {
    'pytorch': ('tools/dist_train.sh CONFIG 4, or torchrun', 'RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE'),
    'slurm': (
        'tools/slurm_train.sh, or srun',
        'SLURM_PROCID SLURM_NTASKS SLURM_LOCALID SLURM_NTASKS_PER_NODE',
    ),
    'mpi': (
        'mpirun',
        ' '.join(f'OMPI_COMM_WORLD_{name}' for name in ('RANK', 'SIZE', 'LOCAL_RANK', 'LOCAL_SIZE')),
    ),
}


def place_of(launcher: str) -> dict[str, str]:
    """This process's ranks under torch's names; an InputError if no launcher set them in the environment."""
    command, names = _LAUNCHERS[launcher]
    rank, size, local_rank, local_size = names.split()
    missing = [name for name in (rank, size) if name not in os.environ]
    if missing:
        raise InputError(
            f'--launcher {launcher}: {" and ".join(missing)} not in the environment, so nothing started this '
            f'process as one of several. Start it by {command}, or leave --launcher out'
        )
    return dict(
        RANK=os.environ[rank],
        WORLD_SIZE=os.environ[size],
        LOCAL_RANK=os.environ.get(local_rank, os.environ[rank]),
        LOCAL_WORLD_SIZE=os.environ.get(local_size, '1'),
    )


@dataclass
class Place:
    """A process among those of its run: its rank, its rank on this machine, whether a launcher started it."""

    rank: int = 0
    local_rank: int = 0
    is_launched: bool = False

    @staticmethod
    def has_joined() -> bool:
        """Whether this process is in a process group."""
        torch = sys.modules.get('torch')
        return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


# Alone, until a command says what started it.
this_process = Place()


def take_place(launcher: str) -> None:
    """Set `this_process` to the rank that a launcher gave it; ``'none'`` is alone. Raises as `place_of`."""
    place = dict(RANK=0, LOCAL_RANK=0) if launcher == 'none' else place_of(launcher)
    this_process.rank, this_process.local_rank = int(place['RANK']), int(place['LOCAL_RANK'])
    this_process.is_launched = launcher != 'none'


def is_first() -> bool:
    """Whether this process writes and prints: it is alone or rank 0."""
    return this_process.rank == 0


def end_rank(code: int) -> None:
    """End a launched rank at once; a process that no launcher started goes on."""
    # Threads of gloo outlive their group; one in six pairs of ranks aborted on them while Python shut down.
    if this_process.is_launched:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# torch reads these whenever it loads a file; with both it refuses to load at all.
_SAFE, _UNSAFE = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


def force_plain_loading() -> None:
    """Make torch load plain data only from now on, here and in child processes, whatever a library asks."""
    os.environ.pop(_UNSAFE, None)
    os.environ[_SAFE] = '1'


@contextmanager
def plain_loading() -> Iterator[None]:
    """`force_plain_loading` for the duration of a block."""
    with code_allowed():
        force_plain_loading()
        yield


@contextmanager
def code_allowed() -> Iterator[None]:
    """Let torch load a trusted file that can run code, if the caller asks it to, within a block."""
    before = {name: os.environ.get(name) for name in (_SAFE, _UNSAFE)}
    os.environ.pop(_SAFE, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def plain_types_only() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` take mmengine's log history, whose types run no code."""
    import numpy as np
    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    def history_method(owner: Any, name: str) -> Any:
        """Replaces ``getattr``, by which the log history stores which of its methods smooths it."""
        if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
            raise UnpicklingError(f'Unsupported global: GLOBAL getattr({owner!r},{name!r})')
        return getattr(owner, name)

    core = np._core if hasattr(np, '_core') else np.core
    numbers = [type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'uint8', 'float32', 'float64')]
    # NumPy 1 and NumPy 2 write different names of these modules into a file.
    makers = [
        (getattr(core.multiarray, name), f'numpy.{folder}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for folder in ('core', '_core')
    ]
    history = [HistoryBuffer, (history_method, 'builtins.getattr')]
    before = torch.serialization.get_safe_globals()
    # OneDL allows more for its own loading, ``getattr`` among it.
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals([*history, np.ndarray, np.dtype, *numbers, *makers])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


# Tasks handed to each worker ahead of the results: enough to keep it busy, few enough to hold in memory.
_AHEAD = 2


def cores() -> int:
    """Cores this process may use: its CPU affinity where the system has one, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def parse_device(device: str) -> tuple[str, int]:
    """Kind and index of a device; raises an InputError unless it is ``'cpu'``, ``'cuda'`` or ``'cuda:N'``."""
    kind, _, index = device.partition(':')
    if kind not in ('cpu', 'cuda') or (index and not index.isdecimal()):
        raise InputError(f'--device {device}: choose cpu, cuda or cuda:N')
    return kind, int(index or 0)


def start_worker() -> None:
    """Set up a worker: one OpenCV thread, and Ctrl-C is left to the parent."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# Wraps the items of long work to show progress; takes their number and the work's name.
Show = Callable[[Iterable, int, str], Iterable]


def unshown(items: Iterable, total: int, what: str) -> Iterable:
    """The items as they are."""
    return items


def map_in_order(function: Callable[[Any], Any], tasks: Iterable, workers: int) -> Iterator:
    """Results of a function over tasks, in order; a few wait in memory. One worker means this process."""
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
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
