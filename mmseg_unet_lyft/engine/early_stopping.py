"""Early stopping whose count survives a resumed run."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

_KEY = 'early_stopping'  # In the message hub, which checkpoints hold.


@HOOKS.register_module()
class LyftEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook, which goes on counting where the run that is resumed had come to.

    Its arguments are those of mmengine's.
    """

    # Before the checkpoint hook, which saves the count.
    priority = 'LOW'

    def before_train(self, runner: Runner) -> None:
        """Take up the count of the run that is resumed."""
        found = runner.message_hub.get_info(_KEY, None)
        if found is not None:
            self.best_score, self.wait_count = found['best_score'], found['wait_count']

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Count this validation, and note the count."""
        super().after_val_epoch(runner, metrics)
        count = dict(best_score=float(self.best_score), wait_count=self.wait_count)
        runner.message_hub.update_info(_KEY, count)
