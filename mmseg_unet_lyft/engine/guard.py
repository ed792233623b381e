"""Protect a training run: check labels, losses and gradients, save it before an error or a stall ends it."""

import gc
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import SHORTAGE, InputError
from ..models.preprocessor import split_pixels
from .checkpoint import newest_intact, saved_checkpoints, unwrapped
from .checkpoint_hook import describe_saved, saver_of, with_present_options

POLICIES = ('stop', 'skip', 'rollback')
# Raised by reading a dead worker's batch before the signal of its death arrives.
LOST = (ConnectionError, EOFError, FileNotFoundError)
# What gloo says where another rank is gone or does not answer; the weights are as before the step then.
_GONE = 'gloo|pair closure|Timed out waiting'
_MOST_IN_A_ROW = 10  # Such steps after which a run that skips or rolls back ends.
STALL_SECONDS = 600.0  # Time without progress after which a run ends, by default.
# `timeout`, Slurm and systemd signal a process, and then the group that it is in.
ONE_REQUEST_SECONDS = 1.0
# Time without progress after a signal: in a wait for a batch, which a save may break off, and elsewhere.
_HEARD_SECONDS = (5.0, 25.0)
_TELL_SECONDS, _SAVE_SECONDS, _TICK_SECONDS = 10.0, 60.0, 1.0
_STATES = dict(T='is stopped', D='waits for a disk', Z='is dead')
# Below this loss scale, which starts at 2^16, no smaller one will make float16 gradients finite.
_LEAST_SCALE = 2.0**-16


# --- what a batch holds, whichever pipeline packed it ------------------------------------------------------


def _metas_of(batch: dict) -> list[dict]:
    """Meta information of a batch's frames; an empty list if it carries none."""
    if 'metas' in batch:
        return list(batch['metas'])
    return [getattr(sample, 'metainfo', {}) for sample in batch.get('data_samples') or []]


def _labels_of(batch: dict) -> list[Tensor]:
    """Label maps (H, W) of a batch's frames."""
    if 'pixels' in batch:
        return list(split_pixels(batch['pixels'], batch['crop_size'])[1])
    samples = batch.get('data_samples') or []
    return [sample.gt_sem_seg.data.squeeze(0) for sample in samples if 'gt_sem_seg' in sample]


def check_labels(batch: dict, model: nn.Module) -> None:
    """Raise an InputError for a label outside the head's classes, which would end the process on a GPU."""
    head = getattr(model, 'decode_head', None)
    if not hasattr(head, 'num_classes'):
        return
    num_classes, ignore_index = head.num_classes, head.ignore_index
    for index, label in enumerate(_labels_of(batch)):
        # Two quick passes; most labels end here.
        if int(label.max()) < num_classes and int(label.min()) >= 0:
            continue
        wrong = ((label < 0) | (label >= num_classes)) & (label != ignore_index)
        if not wrong.any():
            continue
        row, column = wrong.nonzero()[0].tolist()
        meta = _metas_of(batch)[index]
        name = meta.get('seg_map_path') or meta.get('img_path') or f'frame {index} of the batch'
        raise InputError(
            f'{name}: class id {int(label[row, column])} in its crop at row {row}, col {column}; the decode '
            f'head has {num_classes} classes, ids from 0 to {num_classes - 1}, and {ignore_index} does not '
            'count. Set decode_head.num_classes, or correct the label'
        )


# --- steps that must not be made ---------------------------------------------------------------------------


class WorkerDeaths:
    """Delays the error for a dead loader worker, which torch would raise anywhere, to the step's end."""

    def __init__(self) -> None:
        self._raise: Any = None
        self._is_noted = False

    def put_off(self) -> None:
        """From now on, only note that a worker died, if torch has its handler."""
        number = getattr(signal, 'SIGCHLD', None)
        if self._raise or number is None or threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(number)
        if callable(handler):
            self._raise = handler
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_noted = True

    def check(self) -> None:
        """Raise torch's RuntimeError if a worker died since."""
        if self._is_noted:
            self._is_noted = False
            self._raise(signal.SIGCHLD, None)

    def wait(self) -> None:
        """As `check`, after up to 5 seconds for the signal of a worker that is known to be gone."""
        end = time.monotonic() + 5
        while not self._is_noted and time.monotonic() < end:
            time.sleep(0.05)
        self.check()

    def give_back(self) -> None:
        """Let torch's handler raise again."""
        if self._raise:
            signal.signal(signal.SIGCHLD, self._raise)
            self._raise = None


class Watchdog:
    """Thread that ends a run without progress: it names who stalls, lets the main thread save, ends all.

    It hears signals at once; the main thread, which may be stuck, only when it runs Python again.

    Args:
        runner: The run.
        seconds: Time without a `beat` after which the run ends; None waits for ever, unless a signal came.
        numbers: Signals that ask for a stop.
        exit_code: Of a run that stalls.

    Attributes:
        has_fired: Whether the run stalls.
        is_reading: Whether the main thread waits for a batch, so that the run can be saved.
    """

    def __init__(
        self, runner: Runner, seconds: float | None, numbers: Collection[int], exit_code: int
    ) -> None:
        self._runner, self._seconds, self._numbers = runner, seconds or float('inf'), set(numbers)
        self._exit_code, self._doing, self._beats = exit_code, '', 0
        self.has_fired = self.is_reading = False
        self._done = threading.Event()
        self._inbox, self._outbox = socket.socketpair()
        self._outbox.setblocking(False)
        self._before = signal.set_wakeup_fd(self._outbox.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, doing: str, is_reading: bool = False) -> None:
        """Note progress and what is done next; '' if that cannot stall."""
        self._doing, self.is_reading = doing, is_reading
        self._beats += 1

    def close(self) -> None:
        """Stop watching; end the process if the run stalls."""
        signal.set_wakeup_fd(self._before)
        self._done.set()
        if self.has_fired:
            self._end(self._exit_code)

    def _watch(self) -> None:
        idle = longest = 0.0
        beats, heard, limit = self._beats, None, self._seconds
        with self._inbox, self._outbox:
            while not self._done.is_set():
                start = time.monotonic()
                came = select.select([self._inbox], [], [], _TICK_SECONDS)[0]
                if came and self._numbers & set(self._inbox.recv(4096)):
                    is_later = heard is not None and start - heard > ONE_REQUEST_SECONDS
                    # The main thread raises a KeyboardInterrupt, unless it is stuck.
                    if is_later and not self._done.wait(_HEARD_SECONDS[0]):
                        self._end(128 + signal.SIGINT)
                    heard = heard or start
                # Only time in which this process ran: it may have been stopped as a whole.
                idle += min(time.monotonic() - start, _TICK_SECONDS)
                if self._beats != beats or not self._doing:
                    beats, longest, idle = self._beats, max(longest, idle), 0.0
                if heard is not None:
                    limit = min(self._seconds, _HEARD_SECONDS[not self.is_reading] + 3 * longest)
                if idle >= limit:
                    self._fire(idle)

    def _fire(self, idle: float) -> None:
        self.has_fired = True
        # In a thread: nobody may read what is written.
        teller = threading.Thread(target=self._tell, args=(idle,), daemon=True)
        teller.start()
        teller.join(_TELL_SECONDS)
        if hasattr(signal, 'pthread_kill'):
            # `StopOnSignalHook` raises an error where the main thread waits for a batch.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        if not self._done.wait(_SAVE_SECONDS if self.is_reading or get_world_size() > 1 else _TICK_SECONDS):
            self._end(self._exit_code)

    def _tell(self, idle: float) -> None:
        """Report what stalls: this machine's processes of the run that are stopped."""
        kinds = {os.getpid(): 'loader worker'}
        if get_world_size() > 1:
            kinds[os.getppid()] = 'another rank'
        stalled = []
        for file in Path('/proc').glob('[0-9]*/stat'):
            with suppress(OSError):
                state, parent = file.read_text(errors='replace').rpartition(')')[2].split()[:2]
                if state in _STATES and int(parent) in kinds:
                    stalled.append(f'{kinds[int(parent)]} (pid {file.parent.name}) {_STATES[state]}')
        found = ', '.join(stalled) or 'no stopped process was found'
        line = f'rank {get_rank()} stalls: {self._doing} made no progress for {idle:.0f} s; {found}\n'
        os.write(2, line.encode())

    def _end(self, code: int) -> None:
        line = f'ended with code {code}; {describe_saved(self._runner)}\n'
        with suppress(OSError):
            os.write(2, line.encode())
        end_workers()
        os._exit(code)


def end_workers() -> None:
    """Kill the loader workers: one that is stopped would not end by itself, and Python would wait for it."""
    is_main = threading.current_thread() is threading.main_thread() and hasattr(signal, 'SIGCHLD')
    # torch's own handler would raise here.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if is_main else None
    for child in active_children():
        child.kill()
        if is_main:
            child.join(_TICK_SECONDS)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)


class NonFiniteError(Exception):
    """The present step has a loss or gradient that is not finite; the weights are as before it."""


class Guard:
    """Makes a run's training steps, and lets no step with a loss that is not finite change the weights.

    A step whose loss, or gradient over all ranks, is not finite is reported, and the policy decides:
    ``'stop'`` saves the run as it was before the step, and ends it; ``'skip'`` makes the next step, with
    weights and running statistics as they were; ``'rollback'`` first takes weights, optimizer and average
    back to the last checkpoint. With float16 on a GPU, the loss scaler itself skips gradients that
    overflow, and only the loss counts.

    Args:
        runner: The run; its only optimizer and its hooks are built.
        policy: One of `POLICIES`.
    """

    def __init__(self, runner: Runner, policy: str = 'stop') -> None:
        self.runner, self.policy, self.in_a_row = runner, policy, 0
        self._model = unwrapped(runner.model)
        self._buffers = list(self._model.buffers())
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        # The step's batches so far, each with its losses; a model may have none, or several.
        self._made: list[tuple[dict, list[Tensor]]] = []
        self._is_scaled = hasattr(runner.optim_wrapper, 'loss_scaler')
        if not self._is_scaled:
            runner.optim_wrapper.optimizer.register_step_pre_hook(self._check_gradients)

    def step(self, batch: dict) -> dict[str, Tensor] | None:
        """Train on a batch, the step's only one or one of several whose gradients are added up.

        Returns what the model returns; None for the last batch of a step that was not made.
        """
        runner, wrapper = self.runner, self.runner.optim_wrapper
        check_labels(batch, self._model)
        if not self._made:
            for kept, buffer in zip(self._kept, self._buffers, strict=True):
                kept.copy_(buffer)
        losses: list[Tensor] = []
        self._made.append((batch, losses))
        outputs = nonfinite = shortage = None
        try:
            outputs = runner.model.train_step(batch, optim_wrapper=_Watched(wrapper, losses))
            if self._is_scaled and wrapper.should_update():
                self._check_scaled()
        except NonFiniteError as error:
            nonfinite = str(error)
        except (RuntimeError, MemoryError) as error:
            if not re.search(SHORTAGE, f'{type(error).__name__}: {error}'):
                self._save_without(error)
                raise
            shortage = str(error)
        # Handled out here: the caught error would keep all that the step has computed in memory.
        if shortage is not None:
            # Feature maps and their graph refer to each other, so only the garbage collector frees them.
            gc.collect()
            self.save()
            raise MemoryError(shortage)
        if nonfinite is not None:
            self._answer(nonfinite)
            return None
        if wrapper.should_update():
            self.in_a_row = 0
            self._made.clear()
        return outputs

    def _save_without(self, error: Exception) -> None:
        """Save the run if a rank is gone."""
        if get_world_size() > 1 and re.search(_GONE, str(error)):
            self.save()

    def save(self) -> None:
        """Undo an unfinished step, and save the run as it was before it."""
        self.undo()
        saver = saver_of(self.runner)
        if saver is not None and self.runner.iter:
            saver.save_after(self.runner, self.runner.iter)

    def undo(self) -> None:
        """Undo what an unfinished step has done, if anything."""
        if self._made:
            self.runner.optim_wrapper.zero_grad()
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)
            self._made.clear()

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Raise a NonFiniteError before the weights change."""
        weights = [weight for group in optimizer.param_groups for weight in group['params']]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else torch.zeros(())
        self._require_finite(norms, 'gradient')

    def _check_scaled(self) -> None:
        """As `_check_gradients`, after a step with loss scaling, which leaves the weights unchanged then."""
        scale = self.runner.optim_wrapper.loss_scaler.get_scale()
        norm = torch.tensor(float('nan') if scale < _LEAST_SCALE else 0.0)
        self._require_finite(norm, f'gradient (loss scale {scale:g})')

    def _require_finite(self, gradient: Tensor, name: str) -> None:
        """Raise a NonFiniteError, on all ranks, if a loss on any, or the gradient's norm, is not finite."""
        losses = sum((~loss.isfinite() for _, many in self._made for loss in many), torch.zeros(()))
        found = torch.stack([(~gradient.isfinite()).float(), losses.to(gradient.device).float()])
        if get_world_size() > 1:
            all_reduce(found, op='max')
        in_gradient, in_loss = found.tolist()
        if in_loss or in_gradient:
            raise NonFiniteError('loss' if in_loss else name)

    def _answer(self, what: str) -> None:
        """Report what was found and act on it."""
        said = self._describe(what)
        self.undo()
        self.in_a_row += 1
        if self.policy == 'stop':
            self.save()
            remedy = "bound the gradient with optim_wrapper.clip_grad={'max_norm':1}"
            raise InputError(f'{said}. Lower learning_rate, {remedy}, or set on_nonfinite=skip or rollback')
        if self.in_a_row >= _MOST_IN_A_ROW:
            self.save()
            raise InputError(f'{said}. {self.in_a_row} such steps in a row; lower learning_rate')
        done = f'rolled back to {_roll_back(self.runner)}' if self.policy == 'rollback' else 'skipped'
        # Not as arguments: of warnings with one format, mmengine shows the first.
        line = f'{said}; {done}'
        self.runner.logger.warning(line)

    def _describe(self, what: str) -> str:
        """Step, learning rate and the files of its batches; every rank has to call it."""
        runner = self.runner
        # If no rank's loss explains a gradient that is not finite, any batch may be the cause.
        bad = [made for made in self._made if not all(loss.isfinite().all() for loss in made[1])]
        suspects = bad if what == 'loss' else bad or self._made
        metas = [meta for batch, _ in suspects for meta in _metas_of(batch)]
        mine = [str(meta['img_path']) for meta in metas if meta.get('img_path')]
        names = ', '.join(name for names in all_gather_object(mine) for name in names)
        rates = sorted({f'{rate:g}' for rates in runner.optim_wrapper.get_lr().values() for rate in rates})
        return (
            f'step {runner.iter + 1}: the {what} is not finite, at learning rate {", ".join(rates)}; '
            f'batch of {names or "unnamed frames"}'
        )


class _Watched:
    """An optimizer wrapper that notes each loss before it goes backward."""

    def __init__(self, wrapper: Any, losses: list[Tensor]) -> None:
        self._wrapper, self._losses = wrapper, losses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapper, name)

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self._losses.append(loss.detach())
        self._wrapper.update_params(loss, *args, **kwargs)


def _roll_back(runner: Runner) -> str:
    """Reset weights, moments and average, but neither schedule nor options, to the last intact checkpoint."""
    folder = Path(runner.work_dir)
    if not saved_checkpoints(folder):
        raise InputError(f'on_nonfinite: {folder} holds no checkpoint to roll back to; lower learning_rate')
    damaged: list[str] = []
    path, content = newest_intact(folder, damaged)
    for line in damaged:
        runner.logger.warning(line)
    # The schedules go on.
    content.pop('param_schedulers')
    # With this flag EMAHook takes the checkpoint for a resumed run's, and swaps weights and average back.
    is_resumed, runner._resume = runner._resume, True
    runner.call_hook('after_load_checkpoint', checkpoint=content)
    runner._resume = is_resumed
    unwrapped(runner.model).load_state_dict(content['state_dict'])
    runner.optim_wrapper.load_state_dict(with_present_options(runner.optim_wrapper, content['optimizer']))
    return path
