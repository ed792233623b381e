"""The training loop: every step's random numbers follow from its number, so that a run resumes exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.runner import IterBasedTrainLoop
from mmseg.registry import LOOPS
from torch import nn

from ..errors import InputError
from .deaths import LOST, WorkerDeaths
from .guards import Guard
from .history import forget, steps_to_keep
from .saving import VALIDATED


def seed_step(seed: int, rank: int, step: int) -> None:
    """Set torch's, NumPy's and Python's global random numbers to those of a rank's step.

    Args:
        seed: Of the run.
        rank: Of this process.
        step: From 0.
    """
    # Its mixing is part of its definition: no version of NumPy changes it.
    words = np.random.SeedSequence((seed, rank, step)).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    np.random.seed(int(words[1] & np.uint64(0xFFFFFFFF)))  # noqa: NPY002  (what transforms of others draw from)
    random.seed(int(words[2]))


@LOOPS.register_module()
class LyftTrainLoop(IterBasedTrainLoop):
    """mmengine's loop by steps, whose resumed run does what the run that was ended would have done.

    - Before each step all global random numbers are set to those of (seed, rank, step).
    - The loader goes on at the sample it had come to, at once: the sampler is told, nothing is read twice.
    - A validation that was due behind the step resumed at, and not finished, is done first.
    - Of the scalars noted at each step, only what the log is made of is remembered: memory does not grow.
    - A request to stop is heeded behind a step, before a validation that is due there.
    - Steps are made by a `Guard`. Where a batch cannot be read, the run is saved as it stands.

    Its arguments are those of mmengine's ``IterBasedTrainLoop``.

    Attributes:
        is_stopping: Set to end training behind the present step; a validation due there is left for later.
        guard: What makes the steps; `LyftGuardHook` sets another than the default.
    """

    is_stopping = False
    guard: Guard | None = None

    def run(self) -> nn.Module:
        """Train to the end; returns the model."""
        runner = self.runner
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        self.guard = self.guard or Guard(runner)
        if (
            self._iter
            and self._is_validation_due()
            and runner.message_hub.get_info(VALIDATED, 0) != self._iter
        ):
            runner.logger.info('validating behind step %d, which was due when the run ended', self._iter)
            runner.val_loop.run()
        self._deaths = WorkerDeaths()
        try:
            self._train()
        finally:
            self._deaths.give_back()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _train(self) -> None:
        """Make the steps that are left, and the validations behind them."""
        runner, batches = self.runner, self._batches()
        keep = steps_to_keep(runner)
        while self._iter < self._max_iters and not self.stop_training and not self.is_stopping:
            runner.model.train()
            # Twice: transforms of others draw where the batch is read, and a loader's start draws too.
            seed_step(runner.seed, get_rank(), self._iter)
            batch = self._read(batches)
            seed_step(runner.seed, get_rank(), self._iter)
            self.run_iter(batch)
            if keep is not None:
                forget(runner, keep)
            self._decide_current_val_interval()
            if self._is_validation_due() and not self.is_stopping:
                runner.val_loop.run()

    def run_iter(self, data_batch: Any) -> None:
        """Make a step, by the guard."""
        place = dict(batch_idx=self._iter, data_batch=data_batch)
        self.runner.call_hook('before_train_iter', **place)
        outputs = self.guard.step(data_batch)
        self.runner.call_hook('after_train_iter', **place, outputs=outputs)
        self._iter += 1

    def _read(self, batches: Iterator[Any]) -> Any:
        """The next batch; the run is saved before an error goes on."""
        try:
            self._deaths.check()
            batch = next(batches)
            # Its workers are there now, and with them the handler.
            self._deaths.put_off()
            return batch
        except (RuntimeError, ValueError, OSError, EOFError) as error:
            # A file that cannot be read, or a worker that died: nothing is wrong with the weights.
            self.guard.save()
            if isinstance(error, LOST):
                self._deaths.wait()
            raise

    def _is_validation_due(self) -> bool:
        """Whether behind the last step there is a validation."""
        is_turn = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        return self.runner.val_loop is not None and self._iter >= self.val_begin and is_turn

    def _batches(self) -> Iterator[Any]:
        """Batches from the one of the next step on, endlessly."""
        loader = self.dataloader
        sampler = loader.sampler
        can_skip = hasattr(sampler, 'skip') and loader.batch_size
        if can_skip:
            sampler.skip(self._iter * loader.batch_size)
        elif self._iter:
            self.runner.logger.info(
                'reading %d batches again: %s cannot pass over samples', self._iter, type(sampler).__name__
            )
        passed = 0 if can_skip else self._iter
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
            # Of a sampler that ends: its next epoch.
            if hasattr(sampler, 'set_epoch'):
                epoch += 1
                sampler.set_epoch(epoch)
