"""SIGKILL at random moments, in and out of saves: every run is resumed and ends as if nothing had been."""

from __future__ import annotations

import os
import select
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.rounds import Show
from ..engine.saving import saved_checkpoints
from .outcome import Outcome
from .runs import (
    INTERVAL,
    RUN_KINDS,
    STEPS,
    RunKind,
    differences,
    draw_frames,
    had_best,
    log_of,
    run_arguments,
    train_undisturbed,
    unsound_files,
)
from .session import Forked, command, wait_for_end

ANYWHERE, IN_SAVE = 'SIGKILL at a random moment', 'SIGKILL during a save'
_BEST, _WORKERS = 'best checkpoint whole behind the kill', 'loader workers of a killed run ended in 60 s'
_PAUSE_SECONDS = 0.003  # Before and behind each act of a save.
_PIECES = 3  # In which a file is written.
_WINDOW_SECONDS = 0.1  # What a save takes with all that.
_POLL_SECONDS, _MARKS_AT_ONCE = 0.05, 4096
_BEGIN, _END = b'>', b'<'
_AGAIN = 0.4  # How likely a killed run is killed again before it may end.
_ONE_KIND = 10  # With fewer kills, one kind of run: each needs an undisturbed one.
_ENDED_SECONDS = 60.0
_MISSES = 30  # Kills in a row that came too late, before something is wrong.


def torture_kills(folder: Path, count: int, seed: int, progress: Show) -> list[Outcome]:
    """Kill runs at random moments, half of them during a save; resume them, and compare their ends.

    Args:
        folder: For work dirs; those of runs that failed stay.
        count: How many kills.
        seed: Of the moments; what the machine does decides with it.
        progress: Wraps the kills.
    """
    random = np.random.default_rng((seed, 1))
    root = draw_frames(folder)
    kinds = RUN_KINDS[: 1 if count < _ONE_KIND else None]
    seconds = []
    for kind in kinds:
        start = time.monotonic()
        train_undisturbed(kind, root, folder / f'whole {kind.name}')
        seconds.append(time.monotonic() - start)
    plan = [IN_SAVE] * (count // 2) + [ANYWHERE] * (count - count // 2)
    victim = _Victim(folder, root, random, dict(zip(kinds, seconds, strict=True)))
    for what in progress(random.permutation(plan).tolist(), count, 'killing'):
        victim.kill(what)
    victim.settle()
    return victim.outcomes()


class _Victim:
    """A run that is killed, once or several times in a row, and then may end.

    Args:
        folder: Has the undisturbed runs; its work dir goes there.
        root: Data root.
        random: Decides.
        kinds: Of runs, each with the seconds that one takes.
    """

    def __init__(
        self, folder: Path, root: Path, random: np.random.Generator, kinds: dict[RunKind, float]
    ) -> None:
        self._folder, self._root, self._random, self._kinds = folder, root, random, kinds
        self._outcomes = {what: Outcome('kills', what) for what in (ANYWHERE, IN_SAVE, _BEST, _WORKERS)}
        self._number = 0
        self._killed: list[tuple[int, float]] = []
        self._before_save = 0
        self._begin()

    def _begin(self) -> None:
        """Take a fresh work dir, and the next kind of run."""
        self._kind = list(self._kinds)[self._number % len(self._kinds)]
        self._work_dir = self._folder / f'run_{self._number}'
        self._number += 1
        self._kills: list[str] = []
        self._had_best = False

    def kill(self, what: str) -> None:
        """Start the run or go on with it, and kill it; one that ends before is settled, and another taken."""
        for _ in range(_MISSES):
            if self._try(what):
                break
            self.settle()
        else:
            self._outcomes[what].note([f'no run lived long enough to be killed: {self._folder}'])
            return
        self._kills.append(what)
        self._before_save += what == ANYWHERE and not saved_checkpoints(self._work_dir)
        wrong = unsound_files(self._work_dir)
        self._had_best |= had_best(self._work_dir)
        if self._had_best:
            best = [path.name for path in self._work_dir.glob('best_*.pth')]
            lost = [line for line in wrong if '/best_' in line] or (
                [] if best else [f'{self._work_dir}: lost']
            )
            self._outcomes[_BEST].note(lost)
        if wrong:
            self._end(wrong)
        elif self._random.random() > _AGAIN:
            self.settle()

    def _try(self, what: str) -> bool:
        """Whether a run was killed as it was to be."""
        workers = int(self._random.integers(2))
        arguments = run_arguments(self._kind, self._root, self._work_dir, f'num_workers={workers}')
        if what == ANYWHERE:
            run = Forked(command(arguments), log_of(self._work_dir))
            run.wait(self._random.uniform(0, self._kinds[self._kind]))
            is_hit = run.kill()
        else:
            run, is_hit = self._kill_in_save(arguments)
        if workers and is_hit:
            self._killed.append((run.pid, time.monotonic()))
        return is_hit

    def _kill_in_save(self, arguments: list[str]) -> tuple[Forked, bool]:
        """The run, and whether it was killed while it wrote or removed a checkpoint."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        run = Forked(command(arguments, lambda: slow_saves(writer)), log_of(self._work_dir))
        os.close(writer)
        # Each save is followed by another that knows of the validation.
        passed = int(self._random.integers(2 * STEPS // INTERVAL))
        try:
            while _next_save(reader, run):
                if passed:
                    passed -= 1
                elif not _marks(reader, self._random.uniform(0, _WINDOW_SECONDS)):
                    return run, run.kill() and not _marks(reader, 0)
            return run, False
        finally:
            os.close(reader)

    def settle(self) -> None:
        """Let the run end, and see whether it ended as the undisturbed one."""
        arguments = run_arguments(self._kind, self._root, self._work_dir)
        run = Forked(command(arguments), log_of(self._work_dir))
        code = run.finish()
        wrong = [f'{self._work_dir}: resumed, it ended with {code}'] if code else []
        undisturbed = self._folder / f'whole {self._kind.name}'
        self._end(wrong or differences(self._work_dir, undisturbed) + unsound_files(self._work_dir))

    def _end(self, wrong: list[str]) -> None:
        """Note for each kill of the run how it went, and take another run; a sound one's files go."""
        # A run that was never killed has to be right, too.
        for what in self._kills or ([ANYWHERE] if wrong else []):
            self._outcomes[what].note(wrong)
        if not wrong:
            shutil.rmtree(self._work_dir)
            shutil.rmtree(log_of(self._work_dir).parent)
        self._begin()

    def outcomes(self) -> list[Outcome]:
        """What was found, once the workers of killed runs have had their time to end."""
        for session, killed_at in self._killed:
            has_ended = wait_for_end(session, killed_at + _ENDED_SECONDS)
            self._outcomes[_WORKERS].note([] if has_ended else [f'processes of session {session} go on'])
        anywhere = self._outcomes[ANYWHERE]
        anywhere.what = f'{ANYWHERE} ({self._before_save} before the first save)'
        return [outcome for outcome in self._outcomes.values() if outcome.tried]


def _next_save(reader: int, run: Forked) -> bool:
    """Wait until a run begins a save; whether it did before it ended."""
    while not run.has_ended():
        if _marks(reader, _POLL_SECONDS).endswith(_BEGIN):
            return True
    return False


def _marks(reader: int, seconds: float) -> bytes:
    """What came through a pipe; waits so long for the first."""
    is_there = select.select([reader], [], [], seconds)[0]
    return os.read(reader, _MARKS_AT_ONCE) if is_there else b''


def slow_saves(marks: int) -> None:
    """In a process of its own: draw out what a save does, and mark in a pipe where it begins and ends.

    Nothing is done that is not done otherwise, only later.
    """
    from ..datasets import files
    from ..engine import saving

    def pausing(work: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            time.sleep(_PAUSE_SECONDS)
            result = work(*args, **kwargs)
            time.sleep(_PAUSE_SECONDS)
            return result

        return slow

    def marking(work: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any) -> Any:
            os.write(marks, _BEGIN)
            result = work(*args)
            os.write(marks, _END)
            return result

        return marked

    def open_slowly(path: Path, mode: str = 'r', **kwargs: Any) -> Any:
        file = open_path(path, mode, **kwargs)
        return _InPieces(file) if mode == 'wb' and path.name.endswith(files.UNFINISHED) else file

    open_path, Path.open = Path.open, open_slowly
    Path.unlink, Path.replace = pausing(Path.unlink), pausing(Path.replace)
    files.sync, saving.sync = pausing(files.sync), pausing(saving.sync)
    saving.WholeFiles.put = marking(saving.WholeFiles.put)
    saving.WholeFiles.remove = marking(saving.WholeFiles.remove)


class _InPieces:
    """An open file that brings what it is given to the disk in pieces, with time between them."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> _InPieces:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def write(self, content: bytes) -> None:
        """Write it."""
        piece = -(-len(content) // _PIECES)
        for first in range(0, len(content), piece):
            self._file.write(content[first : first + piece])
            self._file.flush()
            time.sleep(_PAUSE_SECONDS)
