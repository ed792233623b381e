"""SIGKILL of a run, in and out of saves; of two ranks, one killed or stopped; two runs in one work dir."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from mmseg_unet_lyft.engine.checkpoint_hook import WholeFiles

from . import common
from .common import Forked, Outcome, Progress

_ANYWHERE, _IN_SAVE = 'SIGKILL at a random moment', 'SIGKILL during a save'
_BEST, _WORKERS = 'best checkpoint intact after the kill', 'loader workers of a killed run ended in 60 s'
_DISK_CALLS = ('open', 'write', 'flush', 'fsync', '__exit__', 'close', 'replace', 'unlink', 'remove')
_SAVE_CALLS = 24  # About, of these in a save.
_AGAIN = 0.4  # How likely a killed run is killed again.
_ONE_KIND = 10  # With fewer kills, one kind of run: each kind needs an undisturbed run.
_ENDED_SECONDS = 60.0
_STALL_SECONDS = 8.0
_MISSES = 20  # Kills in a row that came too late.
_RANKS = 2
_MARK = 'MMSEG_UNET_LYFT_STRESS'  # In the environment of ranks and their descendants.


def stress_run(folder: Path, count: int, seed: int, progress: Progress) -> list[Outcome]:
    """Kill so many runs, half of them during a save; work dirs of those that failed stay.

    The seed decides about the moments together with the speed of the machine.
    """
    random = np.random.default_rng((seed, 1))
    root = common.draw_frames(folder)
    seconds = {}
    for kind in list(common.RUN_KINDS)[: 1 if count < _ONE_KIND else None]:
        start = time.monotonic()
        common.train_undisturbed(kind, root, folder / f'undisturbed {kind}')
        seconds[kind] = time.monotonic() - start
    outcomes = {what: Outcome('kills', what) for what in (_ANYWHERE, _IN_SAVE, _BEST, _WORKERS)}
    killed: dict[int, float] = {}
    plan = [_IN_SAVE] * (count // 2) + [_ANYWHERE] * (count - count // 2)
    for number, what in enumerate(progress(random.permutation(plan).tolist(), count, 'killing')):
        kind, work_dir = list(seconds)[number % len(seconds)], folder / f'run_{number}'
        kills, misses, wrong = 1 + (random.random() < _AGAIN), 0, []
        while kills and misses < _MISSES and not wrong:
            workers = int(random.integers(2))
            arguments = common.train_command(kind, root, work_dir, f'num_workers={workers}')
            pid = _kill(arguments, what, common.log_of(work_dir), random, seconds[kind])
            if pid is None:
                misses += 1
                shutil.rmtree(work_dir)
                continue
            kills -= 1
            killed |= {pid: time.monotonic()} if workers else {}
            wrong = common.damaged_checkpoints(work_dir)
            if common.had_best(work_dir):
                lost = [] if list(work_dir.glob('best_*.pth')) else [f'{work_dir}: best checkpoint lost']
                outcomes[_BEST].note(lost + [line for line in wrong if '/best_' in line])
        wrong += [f'{work_dir}: {misses} runs ended before they were killed'] if kills and not wrong else []
        outcomes[what].note(wrong or _settle(kind, root, work_dir, folder / f'undisturbed {kind}'))
    for session, killed_at in killed.items():
        rest = killed_at + _ENDED_SECONDS - time.monotonic()
        common.wait_until(lambda session=session: not common.running_processes(session), rest)
        left = len(common.running_processes(session))
        outcomes[_WORKERS].note([f'session {session}: {left} processes run on'] if left else [])
    return [outcome for outcome in outcomes.values() if outcome.tried]


def _kill(command: list[str], what: str, log: Path, rng: np.random.Generator, seconds: float) -> int | None:
    """Start or resume a run and kill it; its process id, None if it ended before."""
    if what == _ANYWHERE:
        run = Forked(command, log)
        run.wait(rng.uniform(0, seconds))
        return run.pid if run.kill() else None
    # After each validation the checkpoint is saved a second time.
    saves = int(rng.integers(2 * common.STEPS // common.INTERVAL))
    calls = int(rng.integers(1, _SAVE_CALLS))
    run = Forked(command, log, lambda: _kill_in_save(saves, calls))
    return run.pid if run.finish() == -signal.SIGKILL else None


def _settle(kind: str, root: Path, work_dir: Path, undisturbed: Path) -> list[str]:
    """Let a run end and compare it with the undisturbed one; the files of a correct run go."""
    run = Forked(common.train_command(kind, root, work_dir), common.log_of(work_dir))
    if run.finish() != 0:
        return [f'{run.log}: resumed, it ended with {run.code}']
    wrong = common.differences(work_dir, undisturbed) + common.damaged_checkpoints(work_dir)
    wrong += common.tracebacks(run.log)
    if not wrong:
        shutil.rmtree(work_dir)
        shutil.rmtree(run.log.parent)
    return wrong


def _kill_in_save(saves: int, calls: int) -> None:
    """In a forked run: SIGKILL it after so many saves, and then so many calls that change the disk."""

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal calls
        calls -= event == 'c_return' and arg.__name__ in _DISK_CALLS
        if calls <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def profiled(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal saves
            saves -= 1
            sys.setprofile(count if saves < 0 else None)
            try:
                return work(*args)
            finally:
                sys.setprofile(None)

        return run

    WholeFiles.put = profiled(WholeFiles.put)
    WholeFiles.remove = profiled(WholeFiles.remove)


def stress_writers(folder: Path, count: int, seed: int, progress: Progress) -> list[Outcome]:
    """Start two runs in one work dir at once, so often: one is refused, and the other ends as undisturbed.

    In every second case, the lock of a run that was killed lies there.
    """
    random = np.random.default_rng((seed, 3))
    root, undisturbed = common.draw_frames(folder), folder / 'undisturbed'
    common.train_undisturbed('dropout', root, undisturbed)
    outcome = Outcome('writers', 'two runs in one work dir: one refused, the other as undisturbed')
    for number in progress(range(count), count, 'starting pairs'):
        work_dir = folder / f'run_{number}'
        log = common.log_of(work_dir)
        if number % 2:
            killed = Forked(common.train_command('dropout', root, work_dir), log)
            killed.wait(random.uniform(0, 3))
            killed.kill()
        command = common.train_command('dropout', root, work_dir)
        pair = [Forked(command, log.with_name(f'{one}.txt')) for one in 'ab']
        codes = sorted(run.finish() for run in pair)
        refused = sum(f'{work_dir}: process ' in run.log.read_text() for run in pair)
        wrong = (
            []
            if (codes, refused) == ([0, 2], 1)
            else [f'{log.parent}: ended with {codes}, {refused} refused']
        )
        wrong += [line for run in pair for line in common.tracebacks(run.log)]
        wrong = wrong or common.differences(work_dir, undisturbed) + common.damaged_checkpoints(work_dir)
        outcome.note(wrong)
        if not wrong:
            shutil.rmtree(work_dir)
    return [outcome]


def stress_ranks(folder: Path, count: int, seed: int, progress: Progress) -> list[Outcome]:
    """Kill or stop one of two ranks at a random moment, so many times; work dirs of runs that failed stay."""
    random = np.random.default_rng((seed, 2))
    root, undisturbed = common.draw_frames(folder), folder / 'undisturbed'
    with _launched(root, undisturbed) as run:
        _wait_for_ranks(run)
        start = time.monotonic()
        if run.wait() != 0:
            raise RuntimeError(f'{run.log}: an undisturbed run of {_RANKS} ranks ended with {run.code}')
        seconds = time.monotonic() - start
    longest = 0.0
    ended, resumed = Outcome('ranks', ''), Outcome('ranks', 'resumed, ended as undisturbed')
    for number in progress(range(count), count, 'killing and stopping ranks'):
        work_dir = folder / f'run_{number}'
        sent = signal.SIGSTOP if number % 2 else signal.SIGKILL
        wrong, took = _disturb_a_rank(sent, root, work_dir, random, seconds)
        longest = max(longest, took)
        ended.note(wrong)
        with _launched(root, work_dir) as run:
            failed = [f'{run.log}: resumed, it ended with {run.code}'] if run.wait() != 0 else []
        failed = failed or common.differences(work_dir, undisturbed) + common.tracebacks(run.log)
        resumed.note(failed)
        if not wrong and not failed:
            shutil.rmtree(work_dir)
    ended.what = f'SIGKILL or SIGSTOP of one of {_RANKS} ranks: all ended, in {longest:.1f} s at most'
    return [ended, resumed]


def _disturb_a_rank(
    sent: signal.Signals, root: Path, work_dir: Path, random: np.random.Generator, seconds: float
) -> tuple[list[str], float]:
    """What was wrong after a signal to a rank, and the seconds until all processes had ended."""
    for _ in range(_MISSES):
        shutil.rmtree(work_dir, ignore_errors=True)
        with _launched(root, work_dir) as run:
            ranks = _wait_for_ranks(run)
            if run.wait(random.uniform(0, seconds)) is not None or len(ranks) != _RANKS:
                continue
            os.kill(ranks[int(random.integers(_RANKS))], sent)
            start = time.monotonic()
            # A rank that is stopped before all have joined is noticed after half a minute.
            limit = _ENDED_SECONDS * (2 if sent == signal.SIGSTOP else 1)
            code = run.wait(limit)
            common.wait_until(lambda run=run: not _descendants(run), limit)
            took, left = time.monotonic() - start, _descendants(run)
        wrong = [f'{run.log}: {len(left)} processes run on'] if left else []
        wrong += [f'{run.log}: ended with {code}'] if code in (0, None) else []
        return wrong + common.damaged_checkpoints(work_dir), took
    return [f'{work_dir}: no run lived long enough'], 0.0


@contextmanager
def _launched(root: Path, work_dir: Path) -> Iterator[Forked]:
    """A training of two ranks, started or resumed by ``launch``; no process of it runs on afterwards."""
    train = common.train_command(
        'dropout', root, work_dir, 'num_workers=1', f'stall_seconds={_STALL_SECONDS}'
    )
    log = common.log_of(work_dir)
    environ = {'OMP_NUM_THREADS': '1', _MARK: str(log)}
    run = Forked(['launch', str(_RANKS), *train], log, lambda: os.environ.update(environ))
    try:
        yield run
    finally:
        run.kill()
        # Ranks have sessions of their own, so the launcher's process group is not enough.
        end = time.monotonic() + _ENDED_SECONDS
        while (left := _descendants(run)) and time.monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _wait_for_ranks(run: Forked) -> list[int]:
    """Process ids of the ranks once all are there; fewer if the run ended."""

    def ranks() -> list[int]:
        with suppress(FileNotFoundError, ProcessLookupError):
            tasks = list(Path(f'/proc/{run.pid}/task').iterdir())
            return [int(pid) for task in tasks for pid in (task / 'children').read_text().split()]
        return []

    common.wait_until(lambda: len(ranks()) == _RANKS or run.has_ended(), common.PATIENCE_SECONDS)
    return ranks()


def _descendants(run: Forked) -> list[int]:
    """Ranks and loader workers of a run that have not ended."""
    found, mark = [], f'{_MARK}={run.log}'.encode()
    for pid in common.running_processes():
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if mark in Path(f'/proc/{pid}/environ').read_bytes().split(b'\0'):
                found.append(pid)
    return found
