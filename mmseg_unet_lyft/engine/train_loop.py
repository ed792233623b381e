"""The training loop: every step's random numbers follow from its number, so that a run resumes exactly."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce, barrier, broadcast, get_rank, get_world_size
from mmengine.hooks import EarlyStoppingHook, EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmseg.registry import HOOKS, LOOPS
from torch import nn

from ..errors import InputError
from .checkpoint_hook import VALIDATED, saver_of
from .guard import (
    LOST,
    ONE_REQUEST_SECONDS,
    POLICIES,
    STALL_SECONDS,
    Guard,
    Watchdog,
    WorkerDeaths,
    end_workers,
)

_STOPPING = 'early_stopping'  # Key in the message hub, which checkpoints hold.
_SPENT = 'seconds_trained'  # Likewise: time of training so far.
# What Slurm, schedulers of spot machines, and Ctrl-C send; not all of them are on Windows.
SIGNALS = ('SIGTERM', 'SIGINT', 'SIGUSR1')
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again, here with --resume.
# Values of a scalar; mmengine keeps a million, copies them at each step, and saves them all.
_KEPT_VALUES = 1000
_LONGEST_STOP_SECONDS = 30  # Time that schedulers leave between SIGTERM and SIGKILL.


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed the global random numbers of torch, NumPy and Python for a rank's step, counted from 0."""
    # SeedSequence's mixing is part of its definition: no version of NumPy changes it.
    words = np.random.SeedSequence((seed, rank, step)).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    np.random.seed(int(words[1] & np.uint64(0xFFFFFFFF)))  # noqa: NPY002  (what transforms of others draw from)
    random.seed(int(words[2]))


@LOOPS.register_module()
class LyftTrainLoop(IterBasedTrainLoop):
    """mmengine's loop by steps; a resumed run does what it would have done without the interruption.

    - Before each step all global random numbers are set to those of (seed, rank, step).
    - The loader goes on at its next sample at once: the sampler skips to it, nothing is read twice.
    - A validation that was due at the step resumed from, but not finished, is done first.
    - Only the last 1,000 values of each scalar are kept, so that memory does not grow.
    - If a batch cannot be read, the run is saved before the error is raised.
    - A step is one of the optimizer: with ``accumulative_counts`` it reads that many batches, and all that
      counts steps (``max_iters``, intervals, schedules, log, checkpoints) counts these.

    Its arguments are those of mmengine's ``IterBasedTrainLoop``.
    """

    is_stopping = False  # Set to end training after this step; a validation due there is left for later.
    guard: Guard | None = None  # Makes the steps; `LyftGuardHook` sets one with its own options.
    stopper: 'StopOnSignalHook | None' = None  # Asked within steps of several batches.
    stall_seconds: float | None = STALL_SECONDS  # Set by `LyftGuardHook`.
    accumulate = 1  # Batches of a step.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.val_interval < 1:
            raise InputError(f'val_interval={self.val_interval}: give 1 or more steps')
        # OpenMMLab's loop has started the workers, before the sampler and `StopOnSignalHook` are ready.
        self.dataloader_iterator = self.dataloader._iterator = None

    def run(self) -> nn.Module:
        """Train to the end; returns the model."""
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        self.guard = self.guard or Guard(runner)
        wrapper = runner.optim_wrapper
        self.accumulate = getattr(wrapper, '_accumulative_counts', 1)
        # mmengine's count of batches, by which it adds gradients up; the last step has all of its batches.
        wrapper._inner_count, wrapper._max_counts = 0, -1
        was_validated = runner.message_hub.get_info(VALIDATED, 0) == self._iter
        if self._iter and self._is_validation_due() and not was_validated:
            runner.logger.info('validating after step %d, which was due when the run ended', self._iter)
            runner.val_loop.run()
        self._deaths = WorkerDeaths()
        try:
            self._train()
        finally:
            self._deaths.give_back()
            self.beat('')
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def beat(self, doing: str, is_reading: bool = False) -> None:
        """As `Watchdog.beat`, which replaces it if one watches."""

    def _train(self) -> None:
        """Make the steps that are left, and the validations after them."""
        runner, batches = self.runner, self._batches()
        while self._iter < self._max_iters and not self.stop_training and not self.is_stopping:
            runner.model.train()
            self._make_step(batches)
            for history in runner.message_hub.log_scalars.values():
                # Applied where the next value is added.
                history.max_length = _KEPT_VALUES
            self._decide_current_val_interval()
            if self._is_validation_due() and not self.is_stopping:
                runner.val_loop.run()

    def _make_step(self, batches: Iterator[Any]) -> None:
        """Let the guard make one step of the optimizer; hooks get its first batch, then its last one."""
        runner, first = self.runner, self._iter * self.accumulate
        outputs: list[dict | None] = []
        for number in range(first, first + self.accumulate):
            if outputs and self.stopper is not None and self.stopper.is_asked():
                # The other batches would only delay the save; the resumed run reads them all again.
                self.guard.undo()
                self.stopper.stop(runner, self._iter)
                return
            # Twice: third-party transforms draw while the batch is read, and so does a loader that starts.
            seed_step(runner.seed, get_rank(), number)
            batch = self._read(batches)
            seed_step(runner.seed, get_rank(), number)
            if not outputs:
                runner.call_hook('before_train_iter', batch_idx=self._iter, data_batch=batch)
            outputs.append(self.guard.step(batch))
        mean = outputs[-1]  # None for a step that was not made
        if mean is not None and self.accumulate > 1:
            mean = {name: sum(one[name] for one in outputs) / len(outputs) for name in mean}
        runner.call_hook('after_train_iter', batch_idx=self._iter, data_batch=batch, outputs=mean)
        self._iter += 1

    def _read(self, batches: Iterator[Any]) -> Any:
        """The next batch; the run is saved before an error is raised again."""
        self.beat(f'the batch of step {self._iter + 1}', is_reading=True)
        try:
            self._deaths.check()
            batch = next(batches)
            self.beat(f'step {self._iter + 1}')
            # The loader's workers have started now, and torch has set its signal handler.
            self._deaths.put_off()
            return batch
        except (RuntimeError, ValueError, OSError, EOFError) as error:
            # A file that cannot be read, or a worker that died or stalls: nothing is wrong with the weights.
            self.beat(f'the save after step {self._iter}')
            self.guard.save()
            if isinstance(error, LOST):
                self._deaths.wait()
            raise

    def _is_validation_due(self) -> bool:
        """Whether there is a validation after the last step."""
        is_turn = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        return self.runner.val_loop is not None and self._iter >= self.val_begin and is_turn

    def _batches(self) -> Iterator[Any]:
        """Endless batches, starting with that of the next step."""
        loader, sampler = self.dataloader, self.dataloader.sampler
        passed = self._iter * self.accumulate
        if hasattr(sampler, 'skip') and loader.batch_size:
            sampler.skip(passed * loader.batch_size)
            passed = 0
        elif passed:
            name = type(sampler).__name__
            self.runner.logger.info('reading %d batches again: %s cannot pass over samples', passed, name)
        epoch = 0
        while True:
            is_empty = True
            for batch in loader:
                is_empty = False
                if passed:
                    passed -= 1
                else:
                    yield batch
            if is_empty:
                raise InputError('train_dataloader gives no batch: it has fewer frames than batch_size')
            # A sampler that ends goes on with its next epoch.
            if hasattr(sampler, 'set_epoch'):
                epoch += 1
                sampler.set_epoch(epoch)


@HOOKS.register_module()
class LyftGuardHook(Hook):
    """Makes `LyftTrainLoop` use a `Guard` with this policy.

    Args:
        on_nonfinite: What to do at a loss or gradient that is not finite: one of `guard.POLICIES`.
        stall_seconds: Time without progress after which the train command ends the run, all processes and
            code 75; None waits for ever.
    """

    # After the checkpoint hook, which learns its folder in `before_train`.
    priority = 'LOWEST'

    def __init__(self, on_nonfinite: str = 'stop', stall_seconds: float | None = STALL_SECONDS) -> None:
        # The old spelling.
        on_nonfinite = {'roll back': 'rollback'}.get(on_nonfinite, on_nonfinite)
        if on_nonfinite not in POLICIES:
            names = ', '.join(map(repr, POLICIES))
            raise InputError(f'on_nonfinite={on_nonfinite!r}: choose one of {names}')
        if stall_seconds is not None and not stall_seconds > 0:
            raise InputError(f'stall_seconds={stall_seconds!r}: give more than 0, or None for no limit')
        self.on_nonfinite, self.stall_seconds = on_nonfinite, stall_seconds

    def before_train(self, runner: Runner) -> None:
        """Give the loop its guard; warn where another loop has none."""
        if isinstance(runner.train_loop, LyftTrainLoop):
            runner.train_loop.guard = Guard(runner, self.on_nonfinite)
            runner.train_loop.stall_seconds = self.stall_seconds
        else:
            kind = type(runner.train_loop).__name__
            runner.logger.warning('%s is not watched for losses that are not finite; LyftTrainLoop is', kind)


@HOOKS.register_module()
class LyftEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook; a resumed run goes on counting where it had stopped.

    Args:
        monitor: Name of the metric.
        min_delta: What counts as an improvement, in the metric's unit (percent points for mIoU).
        patience: Validations without an improvement before training stops; None never stops it.
        **kwargs: As in mmengine's hook.
    """

    # Before the checkpoint hook, which saves the count.
    priority = 'LOW'

    def __init__(
        self, monitor: str = 'mIoU', *, min_delta: float = 0.01, patience: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(monitor, min_delta=min_delta, patience=patience, **kwargs)

    def before_run(self, runner: Runner) -> None:
        """Do nothing: mmengine's hook would build the training loop, for a test too."""

    def before_train(self, runner: Runner) -> None:
        """Take up the count of the run that is resumed."""
        found = runner.message_hub.get_info(_STOPPING, None)
        if found is not None:
            self.best_score, self.wait_count = found['best_score'], found['wait_count']

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Count this validation, and note the count."""
        if self.patience is None:
            return
        super().after_val_epoch(runner, metrics)
        count = dict(best_score=float(self.best_score), wait_count=self.wait_count)
        runner.message_hub.update_info(_STOPPING, count)


@HOOKS.register_module()
class LyftEMAHook(EMAHook):
    """mmengine's EMAHook, with its arguments; the average is validated, and saved as the weights.

    ``momentum`` is the share of each step in the average, say 0.001; None keeps no average.
    """

    def __new__(cls, momentum: float | None = None, **_: Any) -> Hook:
        """This hook, or one that does nothing."""
        return super().__new__(Hook if momentum is None else cls)


class TimeLimitHook(Hook):
    """Ends a training after some hours, validations included, with its schedules finished.

    Schedules by step advance by one at each step and, after warm-up, further where the time is ahead of the
    steps. The hours of the runs with this hook that are resumed count.

    Args:
        hours: The time limit, more than 0.
    """

    # After mmengine's timer, and before what logs and saves.
    priority = 'NORMAL'

    def __init__(self, hours: float) -> None:
        self.seconds = 3600 * hours
        self._start = 0.0

    def before_train(self, runner: Runner) -> None:
        """Take up the time of the run that is resumed."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise InputError('--max-hours: EpochBasedTrainLoop cannot end within an epoch; use LyftTrainLoop')
        spent = runner.message_hub.get_info(_SPENT, 0.0)
        self._start = time.monotonic() - spent
        self._advance(runner, spent, runner.iter)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Note the time, which is rank 0's, and follow it."""
        spent = time.monotonic() - self._start
        if get_world_size() > 1:
            shared = torch.tensor(spent, device=get_device())
            broadcast(shared)
            spent = shared.item()
        runner.message_hub.update_info(_SPENT, spent)
        left = max(0.0, self.seconds - spent)
        runner.message_hub.update_info('eta', min(left, runner.message_hub.get_info('eta', left)))
        # `ParamSchedulerHook` makes a step, too.
        self._advance(runner, spent, runner.iter + 1, 1)

    def _advance(self, runner: Runner, spent: float, steps: int, later: int = 0) -> None:
        """Step the schedules to the share of time spent; ``later`` steps follow. End the run in time."""
        schedules = [one for one in runner.param_schedulers or [] if not one.by_epoch]
        max_iters, share = runner.max_iters, min(1.0, spent / self.seconds)
        warmup = max((one.end for one in schedules if one.begin == 0 and one.end < max_iters), default=0)
        place = round(max_iters * share) if steps > warmup else 0
        for one in schedules:
            for _ in range(one._global_step, place - later):
                one.step()
        if share == 1:
            said = 'the %.4g hours are over after step %d; to go on, --resume with a larger --max-hours'
            runner.logger.info(said, self.seconds / 3600, steps)
            # The last step: the run is validated and saved.
            runner.train_loop._max_iters, runner.train_loop.stop_training = steps, True


class StoppedError(Exception):
    """A run was asked to stop while nothing was left to save."""


class StopOnSignalHook(Hook):
    """Preemption: save and end the run after the step in which a signal comes; all ranks at the same step.

    During validation each rank ends by itself between two frames; the run was saved before, if the intervals
    of saving and validation are equal. A later signal ends the process at once. Signals to the complete
    process group also reach loader workers, which leave them to this process. A `Watchdog` ends what stalls.
    """

    # After the checkpoint hook, which may have saved this very step.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.signal: str | None = None  # Name of the one that came.
        self._before: dict[int, Any] = {}
        self._watchdog: Watchdog | None = None
        self._heard = 0.0  # When the first signal came.
        self._is_agreed = False
        self._is_validating = False

    def __enter__(self) -> 'StopOnSignalHook':
        """Take the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for name in SIGNALS:
            number = getattr(signal, name, None)
            # A signal that is ignored, such as Ctrl-C in a background job, stays ignored.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> bool:
        """Give the signals back; a stop in a validation ends here, the process of a stalled run too."""
        if self._watchdog is not None:
            self._watchdog.close()
        # Asked to end, as Python does at its exit, they stay for 30 seconds: see `_start_worker`.
        end_workers()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        # A rank that has done its share waits for the others' counts, and fails when they are gone.
        is_left = self._is_validating and self.signal is not None and kind is not None
        return kind is StoppedError or (is_left and issubclass(kind, RuntimeError))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._watchdog is not None and self._watchdog.has_fired:
            if self._watchdog.is_reading:
                raise RuntimeError('no batch came')
            self.signal = self.signal or 'a stall'
        elif self.signal is None:
            self.signal, self._heard = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._heard > ONE_REQUEST_SECONDS:
            raise KeyboardInterrupt

    def before_train(self, runner: Runner) -> None:
        """Have loader workers leave signals to this process, and the loop ask for them within steps."""
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            loop.dataloader.worker_init_fn = partial(_start_worker, loop.dataloader.worker_init_fn)
        runner.train_loop.stopper = self
        if self._before and isinstance(runner.train_loop, LyftTrainLoop):
            loop = runner.train_loop
            self._watchdog = Watchdog(runner, loop.stall_seconds, self._before, EXIT_STOPPED)
            loop.beat = self._watchdog.beat

    def before_val(self, runner: Runner) -> None:
        """Note that a validation begins."""
        self._is_validating = True
        self._beat(f'the validation after step {runner.iter}')

    def after_val(self, runner: Runner) -> None:
        """Note that training goes on."""
        self._is_validating = False

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Save and end, if any rank was asked to."""
        if self.is_asked():
            self.stop(runner, runner.iter + 1)

    def stop(self, runner: Runner, step: int) -> None:
        """Save the run as it is after a step, and end it; all ranks call this together."""
        self.signal = self.signal or 'a signal to another rank'
        self._beat('')  # A save takes as long as the disk does.
        saver = saver_of(runner)
        if saver is not None and step and saver.saved_step != step:
            saver.save_after(runner, step)
        # A launcher ends all ranks as soon as one has ended: none may end before rank 0 has saved.
        barrier()
        self._is_agreed = True
        if not isinstance(runner.train_loop, LyftTrainLoop):
            raise StoppedError(self.signal)
        runner.train_loop.is_stopping = True

    def _beat(self, doing: str) -> None:
        if self._watchdog is not None:
            self._watchdog.beat(doing)

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """End the run between two frames of a validation: the run was saved before it."""
        self._beat(f'the validation after step {runner.iter}')
        if self.signal is not None:
            raise StoppedError(self.signal)

    def is_asked(self) -> bool:
        """Whether a signal came to any rank."""
        if get_world_size() == 1:
            return self.signal is not None
        asked = torch.tensor(float(self.signal is not None), device=get_device())
        all_reduce(asked, op='max')
        return bool(asked)

    def wait_for_ranks(self) -> None:
        """Wait for the other ranks, if all stopped after one step: none ends while another still reports."""
        if self._is_agreed:
            barrier()


def _start_worker(init: Any, worker: int) -> None:
    """Start a loader worker: leave signals to the parent, then run its own ``init``, if any."""
    # Forked, it would report its signals to the parent's watchdog.
    signal.set_wakeup_fd(-1)
    for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'alarm'):
        # By this signal Python also ends a worker that is stuck when its parent ends.
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LONGEST_STOP_SECONDS))
    if init is not None:
        init(worker)
