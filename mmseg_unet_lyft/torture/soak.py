"""Training watched for long: memory and open files must not grow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..bench.rounds import Show
from ..engine.stopping import EXIT_STOPPED
from .outcome import Outcome
from .runs import RUN_KINDS, draw_frames, log_of, run_arguments, unsound_files
from .session import Forked, command, processes_of

_EVERY_SECONDS = 2.0
_WARM_UP = 0.2  # Share of the time.
_MOST_GROWTH = 1.0  # Percent of the mean an hour.
_MOST_FILES = 4  # More open at once than before: a sample may meet a pipe, or a file that is being saved.
# Validations and saves go on all the time, and it does not end by itself.
_OPTIONS = ('num_workers=2', 'max_iters=100000000', 'val_interval=200')


@dataclass(frozen=True)
class Look:
    """One look at a run.

    Attributes:
        seconds: Since its start.
        megabytes: Memory of all its processes; what they share counts once.
        files: Files they have open.
        processes: How many they are.
    """

    seconds: float
    megabytes: float
    files: int
    processes: int


@dataclass(frozen=True)
class Growth:
    """A line through memory over time.

    Attributes:
        percent_an_hour: Its slope, of the mean.
        error: Standard error of that; of the samples as they are, which depend on each other.
        megabytes: The mean.
    """

    percent_an_hour: float
    error: float
    megabytes: float


def fit_growth(seconds: np.ndarray, megabytes: np.ndarray) -> Growth:
    """The growth of memory by least squares; three samples or more."""
    hours = np.asarray(seconds, float) / 3600
    megabytes = np.asarray(megabytes, float)
    mean, centred = megabytes.mean(), hours - hours.mean()
    spread = (centred**2).sum()
    slope = (centred * megabytes).sum() / spread
    rest = megabytes - mean - slope * centred
    error = np.sqrt((rest**2).sum() / (len(hours) - 2) / spread)
    return Growth(float(100 * slope / mean), float(100 * error / mean), float(mean))


def torture_soak(folder: Path, minutes: float, judges: bool, progress: Show) -> list[Outcome]:
    """Train for so long, and see whether memory or open files grow behind the warm-up.

    Args:
        folder: For the run, and ``soak.csv`` with all samples.
        minutes: How long.
        judges: Whether that is long enough to judge growth; else only that it ran is.
        progress: Wraps the samples.
    """
    root, work_dir = draw_frames(folder), folder / 'run'
    run = Forked(command(run_arguments(RUN_KINDS[1], root, work_dir, *_OPTIONS)), log_of(work_dir))
    count = max(3, round(60 * minutes / _EVERY_SECONDS))
    samples = list(progress(_watch(run, count), count, 'watching'))
    if not run.has_ended():
        os.kill(run.pid, signal.SIGTERM)
    wrong = [] if run.finish() == EXIT_STOPPED else [f'{run.log}: ended with {run.code}']
    wrong += unsound_files(work_dir)
    write_samples(folder.with_name('soak.csv'), samples)
    warm = [sample for sample in samples if sample.seconds >= _WARM_UP * 60 * minutes]
    found = [Outcome('soak', f'{minutes:g} minutes of training, stopped', 1, int(not wrong), wrong)]
    return found + (judge(warm) if judges and len(warm) > 2 else [])


def judge(samples: list[Look]) -> list[Outcome]:
    """Whether memory and open files stayed as they were."""
    growth = fit_growth([one.seconds for one in samples], [one.megabytes for one in samples])
    half = len(samples) // 2
    before, behind = (max(one.files for one in part) for part in (samples[:half], samples[half:]))
    memory = (
        f'memory {growth.percent_an_hour:+.2f} +- {growth.error:.2f} % an hour of {growth.megabytes:.0f} MB'
    )
    grown = growth.percent_an_hour >= _MOST_GROWTH
    opened = f'at most {before} open files in the first half, {behind} in the second'
    many = behind - before > _MOST_FILES
    return [
        Outcome('soak', memory, 1, int(not grown), [f'grows by {_MOST_GROWTH:g} % or more'] if grown else []),
        Outcome('soak', opened, 1, int(not many), [f'more than {_MOST_FILES} more'] if many else []),
    ]


def _watch(run: Forked, count: int) -> Iterator[Look]:
    """Look at a run so often, or until it ends."""
    start = time.monotonic()
    for number in range(1, count + 1):
        time.sleep(max(0.0, start + number * _EVERY_SECONDS - time.monotonic()))
        if run.has_ended():
            return
        yield look(run.pid, time.monotonic() - start)


def look(session: int, seconds: float) -> Look:
    """A sample of a session's processes."""
    kilobytes, files, pids = 0, 0, processes_of(session)
    for pid in pids:
        try:
            rollup = Path(f'/proc/{pid}/smaps_rollup').read_text()
            kilobytes += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith('Pss:'))
            files += sum(1 for _ in Path(f'/proc/{pid}/fd').iterdir())
        except (FileNotFoundError, ProcessLookupError):
            continue  # It has just ended.
    return Look(seconds, kilobytes / 1024, files, len(pids))


def write_samples(path: Path, samples: list[Look]) -> None:
    """All samples as CSV."""
    lines = [f'{one.seconds:.1f},{one.megabytes:.3f},{one.files},{one.processes}' for one in samples]
    path.write_text('\n'.join(['seconds,megabytes,files,processes', *lines, '']), encoding='utf-8')
