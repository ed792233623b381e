"""Stopping a run that is asked to: save it behind the present step, then end with a code of its own."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, barrier, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .saving import LyftCheckpointHook, is_update, saver_of
from .train_loop import LyftTrainLoop

# What Slurm, schedulers of spot machines, and Ctrl-C send; not all of them are on Windows.
SIGNALS = ('SIGTERM', 'SIGINT', 'SIGUSR1')
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again, here with --resume.


class StoppedError(Exception):
    """A run was asked to stop while nothing was left to save."""


class StopOnSignalHook(Hook):
    """Save the run behind the step in which a signal comes, and end it; all ranks at the same step.

    In a validation the run ends between two frames, each rank by itself: it was saved before, where the
    intervals of both are the same. A second signal ends the process. Ctrl-C reaches a loader's workers too;
    they leave it to this process.

    Attributes:
        signal: Name of the signal that came, None before.
        has_saved: Whether the run can go on from where it was stopped.
        saved_step: Behind which step it was saved last, None before.
    """

    # Behind the checkpoint hook, which may have saved this very step.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.signal: str | None = None
        self.has_saved = False
        self.saved_step: int | None = None
        self._before: dict[int, Any] = {}
        self._is_agreed = False
        self._is_validating = False

    def __enter__(self) -> StopOnSignalHook:
        """Take the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in SIGNALS:
            number = getattr(signal, name, None)
            # What is ignored, as Ctrl-C is by a job in the background, stays so.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        """Give the signals back; a stop in a validation ends here."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        # A rank past its share waits for the others' counts, and finds them gone.
        is_left = self._is_validating and self.signal is not None and kind is not None
        return kind is StoppedError or (is_left and issubclass(kind, RuntimeError))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name

    def before_train(self, runner: Runner) -> None:
        """Have loader workers ignore Ctrl-C."""
        for loop in (runner.train_loop, runner.val_loop):
            loader = getattr(loop, 'dataloader', None)
            if isinstance(loader, DataLoader):
                loader.worker_init_fn = _QuietWorker(loader.worker_init_fn)

    def before_val(self, runner: Runner) -> None:
        """Note whether what the run learnt is saved."""
        self._is_validating = True
        self._note_saved(saver_of(runner), runner.iter)

    def after_val(self, runner: Runner) -> None:
        """Note that training goes on."""
        self._is_validating = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Save and end, if any rank was asked to and this step changed the weights."""
        if not is_update(runner) or not self._is_asked():
            return
        self.signal = self.signal or 'a signal to another rank'
        saver = saver_of(runner)
        if saver is not None and saver.saved_step != runner.iter + 1:
            saver.save_now(runner)
        self._note_saved(saver, runner.iter + 1)
        # A launcher ends all ranks as soon as one has ended: none goes before the first has saved.
        barrier()
        self._is_agreed = True
        if not isinstance(runner.train_loop, LyftTrainLoop):
            raise StoppedError(self.signal)
        runner.train_loop.is_stopping = True

    def _note_saved(self, saver: LyftCheckpointHook | None, step: int) -> None:
        """Note how far a run of so many steps is saved."""
        self.saved_step = saver and saver.saved_step
        self.has_saved = self.saved_step == step

    def describe(self) -> str:
        """What a user is told of a stop."""
        if self.has_saved:
            return 'all is saved, go on with --resume'
        if self.saved_step:
            return f'saved last behind step {self.saved_step}, go on from there with --resume'
        return 'nothing was saved for it'

    def _is_asked(self) -> bool:
        """Whether a signal came to any rank."""
        if get_world_size() == 1:
            return self.signal is not None
        asked = torch.tensor(float(self.signal is not None), device=get_device())
        all_reduce(asked, op='max')
        return bool(asked)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """End the run between two frames of a validation: the run was saved before it."""
        if self.signal is not None:
            raise StoppedError(self.signal)

    def wait_for_ranks(self) -> None:
        """Wait for the other ranks, if all stopped behind one step: none ends while another speaks."""
        if self._is_agreed:
            barrier()


class _QuietWorker:
    """What a loader's worker starts with: no ear for Ctrl-C, then what it would start with otherwise."""

    def __init__(self, init: Any) -> None:
        self._init = init

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._init is not None:
            self._init(worker)
