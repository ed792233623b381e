"""What a run remembers of its scalars: no more than its log is made of."""

from __future__ import annotations

from mmengine.runner import Runner

_PREFIXES = ('train/', 'val/time', 'val/data_time')  # What grows by each step, of training and of validation.


def steps_to_keep(runner: Runner) -> int | None:
    """Values of a scalar that the log's windows reach back over; None where one reaches to the start."""
    processor = runner.log_processor
    windows = [processor.window_size, *(entry.get('window_size') for entry in processor.custom_cfg)]
    if not all(isinstance(window, int) for window in windows):
        return None
    # A validation's own time is a mean over all its frames.
    frames = len(runner.val_loop.dataloader) if runner.val_loop else 0
    return max(*windows, frames, 1)


def forget(runner: Runner, keep: int) -> None:
    """Keep so many values of what is noted at every step.

    mmengine keeps a million of each, copies them all at each step, and saves them with every checkpoint.
    """
    for name, history in runner.message_hub.log_scalars.items():
        if name.startswith(_PREFIXES):
            # Heeded where the next value is added.
            history.max_length = keep
