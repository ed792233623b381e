"""Commands of ours in forked processes, imported once, that can be killed, limited and watched."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..__main__ import main
from ..errors import InputError

PATIENCE_SECONDS = 120.0  # For a command that takes three.
LIMIT_SECONDS = 30.0  # For one that takes a third of one.
# Of the time, what a process that waits for something else still computes.
_IDLE_SHARE = 0.005
_POLL_SECONDS = 0.005
_EXIT_CRASHED = 1  # What Python ends with behind a traceback.
# What the commands import once they run, and what that imports in its functions.
_ROOMS = (
    'register',
    'cli.train',
    'datasets.preparation',
    'datasets.leak',
    'engine.data_stats',
    'engine.preflight',
    'engine.runner',
    'engine.stopping',
    'inference.segmenter',
    'inference.video',
    'report.figures',
    'report.inspection_files',
)
_OTHERS = ('matplotlib.pyplot', 'torch._dynamo', 'av')


def require_forks() -> None:
    """Raise an InputError on a system where processes cannot be forked and watched as here."""
    if not Path('/proc/self/stat').is_file():
        raise InputError('torture: processes are watched through /proc; run it on Linux')


def preload() -> None:
    """Import what the commands need into this process, and keep it to one thread: forks of it are sound."""
    import cv2
    import torch

    from ..compat import require_stack

    require_stack()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for room in _ROOMS:
        importlib.import_module(f'..{room}', __package__)
    for name in _OTHERS:
        importlib.import_module(name)


def command(arguments: list[str], prepare: Callable[[], object] = lambda: None) -> Callable[[], int]:
    """Work that runs a command of ours: ``['train', 'unet_lyft.py', ...]``.

    Args:
        arguments: The command line.
        prepare: Called before, in the same process.
    """

    def work() -> int:
        prepare()
        return main(arguments)

    return work


class Forked:
    """Work in a process of its own, which leads a session.

    Args:
        work: Called there; returns the exit code.
        log: File that its output is added to.

    Attributes:
        pid: Of the process, and of its session.
        code: Its exit code, -n for signal n; None while it runs.
        log: As given.
    """

    def __init__(self, work: Callable[[], int | None], log: Path) -> None:
        self.code: int | None = None
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if not self.pid:
            self._become(work)

    def _become(self, work: Callable[[], int | None]) -> None:
        """In the forked process: work and end; never returns."""
        code = _EXIT_CRASHED
        try:
            os.setsid()
            output = self.log.open('a', encoding='utf-8', buffering=1)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            # A thread of the parent's may have held the locks of its own two.
            sys.stdout = sys.stderr = output
            code = work() or 0
        except SystemExit as end:
            # argparse's way; its message is printed.
            code = end.code if isinstance(end.code, int) else _EXIT_CRASHED
        finally:
            # Here, as nothing of the parent's may run in this process.
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)

    def has_ended(self) -> bool:
        """Whether it has; notes its exit code."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        """Its exit code once it has ended, None if it has not within so long."""
        end = time.monotonic() + seconds
        while not self.has_ended() and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return self.code

    def kill(self) -> bool:
        """End it by SIGKILL, it alone; whether that is what it ended by."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def finish(self) -> int:
        """Wait for its end; its exit code. One that hangs is killed, with its workers."""
        if self.wait() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()
        return self.code if self.code is not None else -signal.SIGKILL

    def output(self) -> str:
        """What it and those before it wrote into the log."""
        return self.log.read_text(encoding='utf-8', errors='replace')


@dataclass(frozen=True)
class Ran:
    """What came of a call.

    Attributes:
        code: Exit code; minus the signal's number if one ended it; None if it was still running.
        text: What it wrote to stdout and stderr.
    """

    code: int | None
    text: str


def run_forked(work: Callable[[], int | None], log: Path, limit_seconds: float = LIMIT_SECONDS) -> Ran:
    """Do work in a forked process and wait for its end.

    Args:
        work: Called there; returns the exit code.
        log: File that its output is added to.
        limit_seconds: It is ended once it has computed for longer, or has waited for as long; on a crowded
            machine, waiting for its turn is neither.
    """
    run = Forked(work, log)
    before = 0.0
    while run.wait(limit_seconds) is None:
        used = _cpu_seconds(run.pid)
        if used > limit_seconds or used - before < _IDLE_SHARE * limit_seconds:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            return Ran(None, run.output())
        before = used
    return Ran(run.code, run.output())


def _cpu_seconds(pid: int) -> float:
    """Computing time of a process so far; 0 where it has ended."""
    try:
        # The name, which stands before, may hold blanks. Source: proc(5), utime and stime.
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def is_running(pid: int, session: int | None = None) -> bool:
    """Whether a process, of a session if one is given, is there and not a zombie."""
    try:
        state, _, _, its_session = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != 'Z' and session in (None, int(its_session))


def processes_of(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    pids = (int(place.name) for place in Path('/proc').glob('[0-9]*'))
    return [pid for pid in pids if is_running(pid, session)]


def wait_for_end(session: int, until: float) -> bool:
    """Whether all processes of a session have ended by a moment of ``time.monotonic``."""
    while processes_of(session):
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS * 10)
    return True
