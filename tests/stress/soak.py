"""A long training is watched: memory and the number of open files must not grow."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmseg_unet_lyft.engine.train_loop import EXIT_STOPPED

from . import common
from .common import Forked, Outcome, Progress

_EVERY_SECONDS = 2.0
_WARM_UP = 0.2  # Share of the time.
_SHORTEST_MINUTES = 5  # Below, noise hides growth: only the run itself is judged.
_MOST_GROWTH = 1.0  # Percent of the mean an hour.
_MOST_FILES = 4  # More open at once than before: a sample may meet a pipe, or a file that is being saved.
# Validations and saves all the time, and no end.
_OPTIONS = ('num_workers=2', 'max_iters=100000000', 'val_interval=200')


def stress(folder: Path, minutes: float, seed: int, progress: Progress) -> list[Outcome]:
    """Train for so many minutes; all samples go to ``soak.csv`` next to the folder."""
    work_dir = folder / 'run'
    arguments = common.train_command('average, accumulation', common.draw_frames(folder), work_dir, *_OPTIONS)
    run = Forked(arguments, common.log_of(work_dir))
    count = max(3, round(60 * minutes / _EVERY_SECONDS))
    samples = np.array(list(progress(_watch(run, count), count, 'watching')))
    if not run.has_ended():
        os.kill(run.pid, signal.SIGTERM)
    wrong = [] if run.finish() == EXIT_STOPPED else [f'{run.log}: ended with {run.code}']
    header = 'seconds,megabytes,files,processes'
    np.savetxt(folder.with_name('soak.csv'), samples, '%.3f', ',', header=header, comments='')
    outcome = Outcome('soak', f'{minutes:g} minutes of training, stopped by SIGTERM')
    outcome.note(wrong + common.damaged_checkpoints(work_dir))
    warm = samples[samples[:, 0] >= _WARM_UP * 60 * minutes]
    return [outcome] + (judge(warm) if minutes >= _SHORTEST_MINUTES else [])


def judge(samples: np.ndarray) -> list[Outcome]:
    """Whether memory and open files stayed as they were, of samples as in `_watch`."""
    hours, megabytes = samples[:, 0] / 3600, samples[:, 1]
    (slope, _), covariance = np.polyfit(hours, megabytes, 1, cov=True)
    mean = megabytes.mean()
    growth, error = 100 * slope / mean, 100 * np.sqrt(covariance[0, 0]) / mean
    memory = Outcome('soak', f'memory {growth:+.2f} +- {error:.2f} % an hour of {mean:.0f} MB')
    memory.note([f'grows by {_MOST_GROWTH:g} % or more'] if growth >= _MOST_GROWTH else [])
    first, second = (int(half[:, 2].max()) for half in np.array_split(samples, 2))
    files = Outcome('soak', f'at most {first} open files in the first half, {second} in the second')
    files.note([f'more than {_MOST_FILES} more'] if second - first > _MOST_FILES else [])
    return [memory, files]


def _watch(run: Forked, count: int) -> Iterator[tuple[float, float, int, int]]:
    """Seconds, megabytes (shared memory counts once), open files and processes of a run until it ends."""
    start = time.monotonic()
    for number in range(1, count + 1):
        time.sleep(max(0.0, start + number * _EVERY_SECONDS - time.monotonic()))
        if run.has_ended():
            return
        kilobytes, files, pids = 0, 0, common.running_processes(run.pid)
        for pid in pids:
            try:
                rollup = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
                kilobytes += next(int(line.split()[1]) for line in rollup if line.startswith('Pss:'))
                files += sum(1 for _ in Path(f'/proc/{pid}/fd').iterdir())
            except (FileNotFoundError, ProcessLookupError):
                continue  # It has just ended.
        yield time.monotonic() - start, kilobytes / 1024, files, len(pids)
