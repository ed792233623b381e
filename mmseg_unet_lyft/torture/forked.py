"""A call in a forked process, which has all imports already: how it ended and what it said."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

LIMIT_SECONDS = 30.0
# Of the time, what a process that waits for something else still computes.
_IDLE_SHARE = 0.005


@dataclass(frozen=True)
class Ran:
    """What came of a call.

    Attributes:
        code: Exit code; minus the signal's number if one ended it; None if it was still running.
        text: What it wrote to stdout and stderr.
    """

    code: int | None
    text: str


def run_forked(call: Callable[[], int], log: Path, limit_seconds: float = LIMIT_SECONDS) -> Ran:
    """Call a function, whose result is an exit code, in a process forked from this one.

    This process must compute with one thread: threads do not survive a fork, and what waits for them hangs.

    Args:
        call: What is called.
        log: File that gets its stdout and stderr.
        limit_seconds: It is ended once it has computed for longer, or has waited for as long; on a crowded
            machine, waiting for its turn is neither.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = get_context('fork').Process(target=_call, args=(call, log))
    process.start()
    code = _wait(process, limit_seconds)
    if code is None:
        process.kill()
        process.join()
    process.close()
    return Ran(code, log.read_text(encoding='utf-8', errors='replace') if log.is_file() else '')


def _wait(process: BaseProcess, limit_seconds: float) -> int | None:
    """Exit code of a process, None if it hangs."""
    before = 0.0
    while True:
        process.join(limit_seconds)
        used = _cpu_seconds(process.pid)
        if process.exitcode is not None:
            return process.exitcode
        if used > limit_seconds or used - before < _IDLE_SHARE * limit_seconds:
            return None
        before = used


def _cpu_seconds(pid: int) -> float:
    """Computing time of a process so far; 0 where the system does not tell, or it has ended."""
    try:
        # The name, which stands before, may hold blanks. Source: proc(5), utime and stime.
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _call(call: Callable[[], int], log: Path) -> None:
    """In the child: speak into the log, also from libraries in C, and end with the call's result."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    # A test's capture, or a caller's redirection, is not this process's.
    sys.stdout, sys.stderr = (os.fdopen(number, 'w', encoding='utf-8') for number in (1, 2))
    sys.exit(call())
