"""The config's say in how a run is guarded."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from .guards import Guard, require_policy
from .train_loop import LyftTrainLoop


@HOOKS.register_module()
class LyftGuardHook(Hook):
    """Has `LyftTrainLoop` make its steps by a `Guard` of this policy.

    Args:
        on_nonfinite: What a loss or gradient that is no number leads to: one of `guards.POLICIES`.
        patience: Such steps in a row after which a run that goes on past them ends.

    Raises:
        InputError: If there is no such policy.
    """

    # Behind the checkpoint hook, which learns its folder in `before_train`.
    priority = 'LOWEST'

    def __init__(self, on_nonfinite: str = 'stop', patience: int = 10) -> None:
        require_policy(on_nonfinite)
        self.on_nonfinite, self.patience = on_nonfinite, patience

    def before_train(self, runner: Runner) -> None:
        """Give the loop its guard; of another loop, say that it has none."""
        if isinstance(runner.train_loop, LyftTrainLoop):
            runner.train_loop.guard = Guard(runner, self.on_nonfinite, self.patience)
        else:
            kind = type(runner.train_loop).__name__
            runner.logger.warning('%s is not watched for losses that are no numbers; LyftTrainLoop is', kind)
