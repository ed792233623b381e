"""SIGKILL of one of two ranks: nothing survives it, and the run goes on as if nothing had been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..bench.rounds import Show
from ..errors import InputError
from .outcome import Outcome
from .runs import RUN_KINDS, differences, draw_frames, log_of, run_arguments, unsound_files
from .session import PATIENCE_SECONDS, is_running

_RANKS = 2
_ENDED_SECONDS = 60.0
_MISSES = 10  # Runs in a row that ended before they were killed, before something is wrong.
_POLL_SECONDS = 0.02
_PARENT = Path(__file__).resolve().parents[2]
_MARK = 'MMSEG_UNET_LYFT_TORTURE'  # In the environment of a launcher and of all that comes of it.


def torture_ranks(folder: Path, count: int, seed: int, progress: Show) -> list[Outcome]:
    """Kill one of two ranks at random moments; all processes end, and the resumed run ends as it would have.

    Args:
        folder: For work dirs; those of runs that failed stay.
        count: How many kills.
        seed: Of moments and ranks.
        progress: Wraps the kills.
    """
    random = np.random.default_rng((seed, 2))
    root, undisturbed = draw_frames(folder), folder / 'whole'
    with _Launched(root, undisturbed) as whole:
        whole.wait_for_ranks()
        start = time.monotonic()
        code = whole.wait(PATIENCE_SECONDS)
        seconds = time.monotonic() - start
    if code != 0:
        raise InputError(f'{log_of(undisturbed)}: an undisturbed run of {_RANKS} ranks {_how_ended(code)}')
    longest = 0.0
    ended, resumed = Outcome('ranks', ''), Outcome('ranks', 'resumed, ended as undisturbed')
    for number in progress(range(count), count, 'killing ranks'):
        work_dir = folder / f'run_{number}'
        wrong, took = _kill_a_rank(root, work_dir, random, seconds)
        longest = max(longest, took)
        ended.note(wrong)
        with _Launched(root, work_dir) as run:
            code = run.wait(PATIENCE_SECONDS)
        other = [f'{log_of(work_dir)}: resumed, it {_how_ended(code)}'] if code != 0 else []
        other = other or differences(work_dir, undisturbed)
        resumed.note(other)
        if not wrong and not other:
            shutil.rmtree(work_dir)
    ended.what = f'SIGKILL of one of {_RANKS} ranks: all ended, in {longest:.1f} s at most'
    return [ended, resumed]


def _how_ended(code: int | None) -> str:
    return f'did not end in {PATIENCE_SECONDS:g} s' if code is None else f'ended with {code}'


def _kill_a_rank(
    root: Path, work_dir: Path, random: np.random.Generator, seconds: float
) -> tuple[list[str], float]:
    """What was wrong behind a kill, and the seconds until all had ended."""
    for _ in range(_MISSES):
        shutil.rmtree(work_dir, ignore_errors=True)
        with _Launched(root, work_dir) as run:
            ranks = run.wait_for_ranks()
            if run.wait(random.uniform(0, seconds)) is None and len(ranks) == _RANKS:
                return _kill(run, ranks[int(random.integers(_RANKS))], work_dir)
    return [f'{work_dir}: no run lived long enough to be killed'], 0.0


def _kill(run: _Launched, rank: int, work_dir: Path) -> tuple[list[str], float]:
    """As `_kill_a_rank`, of a run that has its ranks."""
    os.kill(rank, signal.SIGKILL)
    start = time.monotonic()
    code = run.wait(_ENDED_SECONDS)
    while run.processes() and time.monotonic() < start + _ENDED_SECONDS:
        time.sleep(_POLL_SECONDS)
    took, left = time.monotonic() - start, run.processes()
    wrong = [f'{log_of(work_dir)}: {len(left)} processes go on'] if left else []
    run.end()
    if code == 0:
        wrong.append(f'{log_of(work_dir)}: ended with 0')
    return wrong + unsound_files(work_dir), took


class _Launched:
    """A training run of two ranks, started or gone on with as ``tools/launch.py`` does it.

    As a context, behind which nothing of it goes on, whatever happens.

    Args:
        root: Data root.
        work_dir: Its work dir.
    """

    def __init__(self, root: Path, work_dir: Path) -> None:
        arguments = run_arguments(RUN_KINDS[0], root, work_dir, 'num_workers=1')
        self._mark = f'{_MARK}={work_dir.name}-{time.monotonic_ns()}'
        environ = dict(os.environ, PYTHONPATH=str(_PARENT), OMP_NUM_THREADS='1')
        environ.update([self._mark.split('=')])
        log = log_of(work_dir)
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, '-m', __package__.partition('.')[0], 'launch', str(_RANKS), *arguments]
        with log.open('ab') as output:
            self._process = subprocess.Popen(
                command, env=environ, stdout=output, stderr=output, start_new_session=True
            )

    def __enter__(self) -> _Launched:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill what goes on of it. Ranks have sessions of their own, so that a group would not do."""
        self._process.kill()
        self._process.wait()
        end = time.monotonic() + _ENDED_SECONDS
        while (left := self.processes()) and time.monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Its exit code once it has ended, None if it has not within so long."""
        _wait_for(lambda: self.code is not None, seconds)
        return self.code

    def wait_for_ranks(self) -> list[int]:
        """Process ids of the ranks once they are there; fewer if the run ended."""
        _wait_for(lambda: len(self._ranks()) == _RANKS or self.code is not None, PATIENCE_SECONDS)
        return self._ranks()

    def _ranks(self) -> list[int]:
        """Children of the launcher."""
        try:
            tasks = list(Path(f'/proc/{self._process.pid}/task').iterdir())
            return [int(pid) for task in tasks for pid in (task / 'children').read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def processes(self) -> list[int]:
        """All that came of it and has not ended: launcher, ranks, loader workers."""
        found = []
        for place in Path('/proc').glob('[0-9]*'):
            try:
                is_ours = self._mark.encode() in (place / 'environ').read_bytes().split(b'\0')
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if is_ours and is_running(int(place.name)):
                found.append(int(place.name))
        return found


def _wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, or so long."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
