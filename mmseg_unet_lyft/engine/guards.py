"""What a training step is watched for: labels out of range, a loss or gradient that is no number, memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner, save_checkpoint
from torch import Tensor

from ..errors import InputError
from .batches import check_labels, names_of, plain_batch
from .checkpoint import newest_sound
from .memory import describe_shortage, is_shortage
from .saving import BACKEND, saved_checkpoints, saver_of

POLICIES = ('stop', 'skip', 'roll back')
FOLDER = 'nonfinite'  # Of the work dir: batches that gave no number.
# A loss scale that float16 has fallen to has no number left to find; it starts at 2^16.
_LEAST_SCALE = 2.0**-16


def require_policy(policy: str) -> None:
    """Raise an InputError unless there is such a policy."""
    if policy not in POLICIES:
        raise InputError(f'on_nonfinite={policy!r}: choose one of {", ".join(map(repr, POLICIES))}')


class NonFiniteError(Exception):
    """The step about to be made has a loss or gradient that is no number; weights are as before it."""


class Guard:
    """Makes the steps of a run, and sees to it that none spoils what was learnt before it.

    Before a step: no label may be outside the head's classes. In it, before weights change: the loss, and
    the gradient over all ranks, must be numbers. If they are not, step, learning rate and the batch's files
    are said, the batch is saved, and the policy decides:

    - ``'stop'``: the run is saved as it stood before the step, and ends. While gradients are accumulated it
      cannot be: then the last regular save stands.
    - ``'skip'``: the weights stay as they were, and so do running statistics; the next step is made.
    - ``'roll back'``: weights, optimizer and average go back to the last checkpoint; the next step is made.

    With float16 on a GPU, gradients that overflow are the loss scaler's to skip, and only the loss counts.

    Args:
        runner: The run; its optimizer and hooks are built.
        policy: One of `POLICIES`.
        patience: Steps in a row after which a run that skips or rolls back ends.

    Raises:
        InputError: If there is no such policy, or there are several optimizers.
    """

    def __init__(self, runner: Runner, policy: str = 'stop', patience: int = 10) -> None:
        require_policy(policy)
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            names = ', '.join(runner.optim_wrapper.keys())
            raise InputError(f'optim_wrapper: several optimizers ({names}); training takes one')
        self.runner, self.policy, self.patience = runner, policy, patience
        self.in_a_row = 0
        bare = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._head = getattr(bare, 'decode_head', None)
        self._buffers = list(bare.buffers())
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        # Since the weights changed last: more than one where gradients are accumulated.
        self._batches: list[dict] = []
        self._losses: list[Tensor] = []
        self._is_scaled = hasattr(runner.optim_wrapper, 'loss_scaler')
        if not self._is_scaled:
            runner.optim_wrapper.optimizer.register_step_pre_hook(self._check_gradients)

    def step(self, batch: dict) -> dict[str, Tensor] | None:
        """Make a training step.

        Returns:
            What the model returns of it, for the log; None for a step that was not made.

        Raises:
            InputError: For a label outside the classes, memory that does not suffice, or a loss or gradient
                that is no number where the policy is to stop.
        """
        runner = self.runner
        if self._head is not None:
            check_labels(batch, self._head.num_classes, self._head.ignore_index)
        if not self._batches:
            for kept, buffer in zip(self._kept, self._buffers, strict=True):
                kept.copy_(buffer)
        self._batches.append(batch)
        outputs, no_number, shortage = None, None, None
        try:
            outputs = runner.model.train_step(
                batch, optim_wrapper=_Watched(runner.optim_wrapper, self._losses)
            )
            if self._is_scaled:
                self._check_scaled()
        except NonFiniteError as error:
            no_number = str(error)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            shortage = str(error)
        # Not in the handler, and without the error, which holds all that the step has computed.
        if shortage is not None:
            # Maps and the graph between them refer to each other.
            gc.collect()
            self._restore()
            self.save()
            raise InputError(describe_shortage(runner, batch, shortage))
        if no_number is not None:
            self._answer(no_number)
            outputs = None
        elif runner.optim_wrapper.should_update():
            # Only then is it known.
            self.in_a_row = 0
        if no_number or runner.optim_wrapper.should_update():
            self._batches.clear()
            self._losses.clear()
        return outputs

    def save(self) -> None:
        """Save the run as it stands before the present step, if the weights changed in the last one."""
        saver = saver_of(self.runner)
        accumulated = self.runner.iter % getattr(self.runner.optim_wrapper, '_accumulative_counts', 1)
        if saver is not None and self.runner.iter and not accumulated:
            saver.save_before_step(self.runner)

    def _restore(self) -> None:
        """Undo what a step has done that was not finished."""
        self.runner.optim_wrapper.zero_grad()
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)

    # --- finding it ----------------------------------------------------------------------------------------

    def _check_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Raise a NonFiniteError before weights change."""
        gradients = [
            weight.grad
            for group in optimizer.param_groups
            for weight in group['params']
            if weight.grad is not None
        ]
        norms = torch.stack(torch._foreach_norm(gradients)).sum() if gradients else torch.zeros(())
        self._require_numbers(norms, 'gradient')

    def _check_scaled(self) -> None:
        """As `_check_gradients`, behind a step with loss scaling, which has not changed the weights if so."""
        if self.runner.optim_wrapper.should_update():
            scale = self.runner.optim_wrapper.loss_scaler.get_scale()
            lost = scale < _LEAST_SCALE
            self._require_numbers(
                torch.tensor(float('nan') if lost else 0.0), f'gradient (loss scale {scale:g})'
            )

    def _require_numbers(self, gradient: Tensor, name: str) -> None:
        """Raise a NonFiniteError, on all ranks, if a loss on any, or the gradient's norm, is no number."""
        is_loss = sum(~loss.isfinite() for loss in self._losses).to(gradient.device) if self._losses else 0
        found = torch.stack(
            [~gradient.isfinite(), torch.as_tensor(is_loss > 0, device=gradient.device)]
        ).float()
        if get_world_size() > 1:
            all_reduce(found, op='max')
        in_gradient, in_loss = found.tolist()
        if in_loss or in_gradient:
            raise NonFiniteError('loss' if in_loss else name)

    # --- answering it --------------------------------------------------------------------------------------

    def _answer(self, what: str) -> None:
        """Say what was found and act on it."""
        runner = self.runner
        said = self._describe(what)
        self._restore()
        self.in_a_row += 1
        if self.policy == 'stop':
            self.save()
            raise InputError(
                f'{said}. Lower learning_rate, bound the gradient with '
                "optim_wrapper.clip_grad={'max_norm':1}, or go on past such steps with on_nonfinite=skip or "
                "'roll back'"
            )
        if self.in_a_row >= self.patience:
            self.save()
            raise InputError(f'{said}. {self.in_a_row} such steps in a row; lower learning_rate')
        if self.policy == 'roll back':
            runner.logger.warning('%s; rolled back to %s', said, roll_back(runner))
        else:
            runner.logger.warning('%s; skipped', said)

    def _describe(self, what: str) -> str:
        """Step, learning rate, files and where they were saved: each rank saves its batches, all are said."""
        runner = self.runner
        bad = [not bool(loss.isfinite()) for loss in self._losses]
        # A gradient of all ranks that no rank's loss explains may be any batch's.
        is_mine = any(bad) or what != 'loss'
        batches = [batch for batch, is_bad in zip(self._batches, bad, strict=True) if is_bad or not any(bad)]
        found: list[Any] = [None] * get_world_size()
        mine = None
        if is_mine:
            path = Path(runner.work_dir) / FOLDER / f'step_{runner.iter + 1}_rank_{get_rank()}.pth'
            save_checkpoint(
                dict(
                    batches=[plain_batch(batch) for batch in batches],
                    losses=[float(loss) for loss in self._losses],
                ),
                str(path),
                backend_args=dict(backend=BACKEND),
            )
            mine = (str(path), [name for batch in batches for name in names_of(batch)])
        found = all_gather_object(mine)
        paths = ', '.join(one[0] for one in found if one)
        names = ', '.join(name for one in found if one for name in one[1])
        rates = sorted({f'{rate:g}' for rates in runner.optim_wrapper.get_lr().values() for rate in rates})
        return (
            f'step {runner.iter + 1}: the {what} is no finite number, at learning rate {", ".join(rates)}; '
            f'batch of {names or "unnamed frames"}, saved as {paths}'
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


def roll_back(runner: Runner) -> str:
    """Put weights, optimizer and moving average back to those of the work dir's last sound checkpoint.

    The step, the learning rate and the position in the data stay.

    Returns:
        The checkpoint's path.

    Raises:
        InputError: If there is none.
    """
    folder = Path(runner.work_dir)
    if not saved_checkpoints(folder):
        raise InputError(
            f'on_nonfinite: {folder} holds no checkpoint yet to roll back to; lower learning_rate'
        )
    damaged: list[str] = []
    try:
        content = newest_sound(folder, damaged)
    finally:
        for line in damaged:
            runner.logger.warning('%s', line)
    # EMAHook tells a resumed run's checkpoint, whose weights it has exchanged with the average, by this.
    is_resumed, runner._resume = runner._resume, True
    runner.call_hook('after_load_checkpoint', checkpoint=content)
    runner._resume = is_resumed
    bare = runner.model.module if is_model_wrapper(runner.model) else runner.model
    bare.load_state_dict(content['state_dict'])
    groups = runner.optim_wrapper.optimizer.param_groups
    rates = [{key: group[key] for key in ('lr', 'initial_lr') if key in group} for group in groups]
    runner.optim_wrapper.load_state_dict(content['optimizer'])
    for group, rate in zip(runner.optim_wrapper.optimizer.param_groups, rates, strict=True):
        group.update(rate)
    return content['path']
